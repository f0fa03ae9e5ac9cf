"""The comparison as JSON, a table and a chart."""

from __future__ import annotations

import json
import statistics
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.cpu.engines import ENGINES
from benchmarks.cpu.workloads import LOWER_IS_BETTER, NAMES, UNITS

_BAR, _GAP, _LEFT, _WIDTH = 20, 26, 190, 720


def write_report(result: dict[str, Any], directory: Path) -> None:
    """Write ``result.json``, ``table.md`` and ``chart.svg`` in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (directory / "table.md").write_text(table(result))
    (directory / "chart.svg").write_text(chart(result))


def table(result: dict[str, Any]) -> str:
    """Medians, with the least and the greatest, in Markdown."""
    figures = {workload: result["figures"][workload] for workload in NAMES if workload in result["figures"]}
    names = [name for name in ENGINES if any(by_engine.get(name) for by_engine in figures.values())]
    counts = {len(values) for by_engine in figures.values() for values in by_engine.values() if values}
    weights = f"Llama {result['shape']} in {result.get('gguf', 'bfloat16')} with random weights"
    lines = [
        f"{result['date']}, {result['processor']}, {result['threads']} threads, {weights}; "
        f"median of {' or '.join(map(str, sorted(counts)))} (least–greatest), "
        "engines in turn",
        "",
        "| | " + " | ".join(f"{name} {UNITS[name]}" for name in figures) + " |",
        "|---" * (len(figures) + 1) + "|",
    ]
    for name in names:
        cells = [_cell(by_engine.get(name)) for by_engine in figures.values()]
        versions = ", ".join(f"{key} {value}" for key, value in result["versions"][name].items())
        lines.append(f"| {ENGINES[name].name} ({versions}) | " + " | ".join(cells) + " |")
    if figures.get("C2", {}).get("own") and result["weight_bytes"]:
        seconds = statistics.median(figures["C2"]["own"]) / 1e3
        rate = result["weight_bytes"] / seconds / 1e9
        bound = statistics.median(result["read_bandwidths"]) / 1e9
        lines += [
            "",
            f"A token reads {result['weight_bytes'] / 1e6:.0f} MB of weights: at batch 1 this project reads "
            f"{rate:.1f} GB/s, {rate / bound:.0%} of the {bound:.1f} GB/s measured for plain reading.",
        ]
    return "\n".join(lines) + "\n"


def _cell(values: list[float] | None) -> str:
    if not values:
        return "–"
    form = "{:,.2f}" if statistics.median(values) < 100 else "{:,.0f}"
    middle, low, high = (form.format(x) for x in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})"


def chart(result: dict[str, Any]) -> str:
    """Bars of each workload, the longest the best."""
    parts, y = [], 10
    for workload, figures in result["figures"].items():
        medians = {name: statistics.median(values) for name, values in figures.items() if values}
        if not medians:
            continue
        lower = workload in LOWER_IS_BETTER
        scores = {name: 1 / value if lower else value for name, value in medians.items()}
        y += _GAP
        parts.append(f'<text x="4" y="{y - 8}" font-weight="bold">{workload}, {UNITS[workload]}</text>')
        for name, value in medians.items():
            width = (_WIDTH - _LEFT - 90) * scores[name] / max(scores.values())
            colour = "#2563eb" if name == "own" else "#94a3b8"
            parts.append(f'<text x="4" y="{y + 14}">{escape(ENGINES[name].name)}</text>')
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{width:.0f}" height="{_BAR - 4}" fill="{colour}"/>'
                f'<text x="{_LEFT + width + 6:.0f}" y="{y + 13}">{value:,.1f}</text>'
            )
            y += _BAR
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 10}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#1e293b">'
        '<rect width="100%" height="100%" fill="#ffffff"/>' + "".join(parts) + "</svg>\n"
    )
