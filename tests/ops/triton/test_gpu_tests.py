"""Tests that need a GPU can be imported where there is none: what they name is still there."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

GPU = Path(__file__).resolve().parents[2] / "gpu"


@pytest.mark.parametrize("name", sorted(path.stem for path in GPU.glob("test_*.py")))
def test_they_are_imported(name: str) -> None:
    module = importlib.import_module(f"tests.gpu.{name}")
    assert any(each.startswith("test_") for each in vars(module))
