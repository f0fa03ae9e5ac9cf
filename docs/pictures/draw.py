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
GPU = "gpu-tables-h200-2026-12-03.json"
"""A workload of a later entry stands for that of an earlier one."""
SERVED = "gpu-served-h200-2026-12-02.json"
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
        groups: (heading, (name, value, label) of each bar).
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
    """Workloads of the 8B on an H200 beside vLLM."""
    found: dict[str, dict[str, Any]] = {"own": {}, "vllm": {}}
    for result in json.loads((RESULTS / GPU).read_text())["results"]:
        found[result["engine"].split()[0]] |= result["workloads"]
    what = {
        "W1": "256 requests, in and out 100 to 1,024 tokens",
        "W2": "one request",
        "W4": "32 prompts of 2,048 tokens",
        "L1": "16 requests, 16,000 tokens in, 256 out",
        "H1": "1,024 requests, in 64 to 256 tokens, out 64 to 512",
        "FULL": "256 requests, cache for a quarter of what they need",
    }
    groups = []
    for workload, words in what.items():
        lines = []
        for engine, name in (("own", "this project"), ("vllm", "vLLM 0.26")):
            (value,) = (number for key, number in found[engine][workload].items() if key != "seconds")
            slower = workload == "W2"
            label = f"{value:.2f} ms a token" if slower else f"{value:,.0f} tokens/s"
            lines.append((name, 1 / value if slower else value, label))
        groups.append((words, lines))
    return bars("Tokens per second of the 8B on an H200, beside vLLM", groups)


def served() -> Svg:
    """First tokens and gaps at some loads, beside vLLM."""
    found: dict[int, dict[str, Any]] = {}  # a later run of a load stands for those before
    for run in json.loads((RESULTS / SERVED).read_text())["runs"]:
        for load, figures in run["own"]["served"].items():
            of_both = {"this project": figures, "vLLM 0.26": run["vllm"]["served"][load]}
            found[int(load.removeprefix("AT"))] = of_both
    groups = []
    for what, words in (("ttft_ms", "first token"), ("itl_ms", "between tokens")):
        for load in sorted(found):
            values = {name: figures[what]["p99"] for name, figures in found[load].items()}
            lines = [(name, value, f"{value:.0f} ms") for name, value in values.items()]
            groups.append((f"{words}, {load} requests a second", lines))
    return bars("The 8B served from an H200: 99th percentiles, the shorter the better", groups)


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
    gpus = {HERE / "gpu.svg": str(gpu()), HERE / "served.svg": str(served())}
    return gpus | {HERE / name: str(cpu(*what)) for name, what in CPUS.items()}


if __name__ == "__main__":
    for path, content in drawn().items():
        path.write_text(content, encoding="utf-8")
