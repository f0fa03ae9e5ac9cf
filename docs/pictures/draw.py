"""Draws the charts of the performance pages from the recorded figures.

.venv/bin/python -m docs.pictures.draw
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from docs.tutorial.figures.svg import Svg

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[1] / "benchmarks" / "results"
GPU = "gpu-h100-2026-11-23-sorted.json"
CPUS = {
    "cpu.svg": ("cpu-125m-2026-11-23.json", "two CPU cores with AMX"),
    "cpu-avx512.svg": ("cpu-125m-2026-12-01.json", "two CPU cores without AMX"),
}
NAMES = {
    "own": "this project",
    "own-int8": "in 8-bit arithmetic",
    "vllm": "vLLM CPU",
    "vllm-pages": "vLLM CPU, pages kept",
    "llama.cpp": "llama.cpp",
}


def bars(title: str, groups: list[tuple[str, list[tuple[str, float, str]]]]) -> Svg:
    """Groups of bars, each as long as its share of the group's longest.

    Args:
        groups: (heading, (name, value that is the better the greater, label) of each bar).
    """
    rows = sum(len(each) for _, each in groups)
    svg = Svg(640, 20 + 26 * len(groups) + 20 * rows, title)
    y = 18
    for heading, lines in groups:
        svg.text(12, y + 4, heading, "small bold")
        longest = max(value for _, value, _ in lines)
        for at, (name, value, label) in enumerate(lines):
            top = y + 12 + 20 * at
            svg.text(150, top + 11, name, "small", "end")
            svg.rect(158, top, 360 * value / longest, 15, "a" if at == 0 else "waste")
            svg.text(166 + 360 * value / longest, top + 12, label, "small")
        y += 26 + 20 * len(lines)
    return svg


def gpu() -> Svg:
    """Workloads on an H100 beside vLLM."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for result in json.loads((RESULTS / GPU).read_text())["results"]:
        found.setdefault((result["shape"], result["engine"].split()[0]), {}).update(result["workloads"])
    what = {
        "W1": "256 requests",
        "W2": "one request",
        "W3": "32 requests",
        "W4": "prompts",
        "FULL": "a full cache",
    }
    groups = []
    for shape, size in (("1b", "1.1B"), ("8b", "8B")):
        for workload, words in what.items():
            lines = []
            for engine, name in (("own", "this project"), ("vllm", "vLLM 0.26")):
                figures = found[shape, engine].get(workload)
                if figures is None:
                    break
                (value,) = (number for key, number in figures.items() if key != "seconds")
                slower = workload == "W2"
                label = f"{value:.2f} ms a token" if slower else f"{value:,.0f} tokens/s"
                lines.append((name, 1 / value if slower else value, label))
            if lines:
                groups.append((f"{size}, {words}", lines))
    return bars("Tokens per second on an H100, beside vLLM", groups)


def cpu(file: str, where: str) -> Svg:
    """Workloads beside other engines."""
    what = {"C1": "32 requests", "C2": "one request", "C3": "16 requests", "C4": "prompts"}
    figures = json.loads((RESULTS / file).read_text())["figures"]
    groups = []
    for workload, words in what.items():
        lines = []
        for engine, values in figures[workload].items():
            value, slower = statistics.median(values), workload == "C2"
            label = f"{value:.1f} ms a token" if slower else f"{value:,.0f} tokens/s"
            lines.append((NAMES.get(engine, engine), 1 / value if slower else value, label))
        groups.append((words, lines))
    return bars(f"Tokens per second on {where}, beside other engines", groups)


def drawn() -> dict[Path, str]:
    """Every file and its content."""
    return {HERE / "gpu.svg": str(gpu())} | {HERE / name: str(cpu(*what)) for name, what in CPUS.items()}


if __name__ == "__main__":
    for path, content in drawn().items():
        path.write_text(content, encoding="utf-8")
