"""docs/models.md says of families and weight formats what is so."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.models.registry import FAMILIES
from tests.models.grid import FORMATS, KEPT, PAGE, prove_cell, read_table

pytest.importorskip("triton")

SAID = read_table(PAGE.read_text(encoding="utf-8"))
FEW = [("llama", column) for column in (*FORMATS, KEPT)] + [("gpt2", KEPT), ("mixtral", "awq")]
"""Proven in every run: what is kept, what becomes floats, what is refused."""


def test_the_page_has_every_family_and_format() -> None:
    assert SAID.keys() == {(family, column) for family in FAMILIES for column in (*FORMATS, KEPT)}


@pytest.mark.parametrize(
    ("family", "column"),
    [cell if cell in FEW else pytest.param(*cell, marks=pytest.mark.slow) for cell in SAID],
)
def test_a_cell(family: str, column: str, tmp_path: Path) -> None:
    said = prove_cell(family, column, tmp_path)
    assert SAID[family, column] == said, "run .venv/bin/python -m tests.models.grid"
