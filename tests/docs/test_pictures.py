"""The charts of the performance pages are those of the recorded figures, and the pages tell the same."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from docs.pictures.draw import CPUS, RESULTS, drawn

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_charts_are_those_that_the_script_draws() -> None:
    assert [path.name for path, text in drawn().items() if path.read_text(encoding="utf-8") != text] == []


def test_the_tables_of_cpus_are_those_of_the_results() -> None:
    page = (DOCS / "performance-cpu.md").read_text(encoding="utf-8")
    for chart, (file, _) in CPUS.items():
        behind = page[page.index(f"(pictures/{chart})") :]
        row = next(line for line in behind.splitlines() if line.startswith("| this project |"))
        figures = json.loads((RESULTS / file).read_text())["figures"]
        for workload, cell in zip(("C1", "C2", "C3", "C4"), row.split("|")[2:], strict=False):
            value = statistics.median(figures[workload]["own"])
            assert f"**{value:.2f}**" in cell or f"**{value:,.0f}**" in cell
