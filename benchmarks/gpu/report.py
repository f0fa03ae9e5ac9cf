"""What the figures of several rounds come to, and the table of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.workloads import figures, workload

UNITS = {
    "output_tokens_per_second": ("out tok/s", 0),
    "ms_per_token": ("ms/token", 3),
    "prompt_tokens_per_second": ("prompt tok/s", 0),
    "requests_per_second": ("req/s", 2),
}

CASE_FIGURES = {"ms", "plain_ms", "speedup"}
CASE_CHECKS = {"equal", "as_forced"}
"""What a case of drafts has: figures, and what must be so in each of its runs."""

Result = dict[str, Any]
"""What one process of one engine wrote."""


def pool(rounds: Sequence[Result]) -> Result:
    """The results of one engine's processes in several rounds as one: its figures are medians of all runs."""
    pooled = {**rounds[-1], "workloads": {}}
    if "start_seconds" in pooled:
        pooled["start_seconds"] = statistics.median(result["start_seconds"] for result in rounds)
    for name in dict.fromkeys(name for result in rounds for name in result.get("workloads", ())):
        runs = [result["workloads"][name] for result in rounds if name in result.get("workloads", ())]
        seconds = [time for run in runs for time in run["seconds"]]
        median = statistics.median(seconds)
        figure: Result = {"seconds": seconds, **figures(name, workload(name), median)}
        if "offline_seconds" in runs[0]:
            offline = [time for run in runs for time in run["offline_seconds"]]
            figure |= {"offline_seconds": offline, "share_of_offline": statistics.median(offline) / median}
        pooled["workloads"][name] = figure
    copies = [result["swap"] for result in rounds if "swap" in result]
    if copies:
        pooled["swap"] = _medians(copies)
    served = [result["served"] for result in rounds if "served" in result]
    if served:
        names = dict.fromkeys(name for one in served for name in one)
        pooled["served"] = {name: _medians([one[name] for one in served if name in one]) for name in names}
    if "cases" in pooled:
        pooled["cases"] = _pool_cases([case for result in rounds for case in result.get("cases", ())])
    return pooled


def _pool_cases(cases: Sequence[Result]) -> list[Result]:
    """Of drafts: each case once, with the medians of its figures."""
    pooled = []
    for name in dict.fromkeys(case["name"] for case in cases):
        same = [case for case in cases if case["name"] == name]
        medians = {key: statistics.median(case[key] for case in same) for key in CASE_FIGURES & set(same[0])}
        held = {key: all(case[key] for case in same) for key in CASE_CHECKS & set(same[0])}
        pooled.append({**same[-1], **medians, **held})
    return pooled


def _medians(measured: Sequence[Result]) -> Result:
    """Of dictionaries of numbers, and of such dictionaries, key by key."""
    return {
        key: _medians([one[key] for one in measured])
        if isinstance(value, dict)
        else statistics.median(one[key] for one in measured)
        for key, value in measured[0].items()
    }


def table(results: Sequence[Result]) -> str:
    """A line for each engine, model and workload."""
    lines = ["| model | workload | engine | median | range (s) |", "|---|---|---|---|---|"]

    def add(result: Result, name: str, figure: str, remark: str = "") -> None:
        lines.append(f"| {result['shape']} | {name} | {result['engine']} | {figure} | {remark} |")

    for result in results:
        if "start_seconds" in result:
            add(result, "START", f"{result['start_seconds']:.1f} s")
        for name, figure in result["workloads"].items():
            (key,) = set(figure) & set(UNITS)
            unit, digits = UNITS[key]
            remark = f"{min(figure['seconds']):.3f} to {max(figure['seconds']):.3f}"
            if "share_of_offline" in figure:
                remark += f", {figure['share_of_offline']:.1%} of offline"
            add(result, name, f"{figure[key]:,.{digits}f} {unit}", remark)
        for way, figure in result.get("swap", {}).items():
            if isinstance(figure, dict):
                gigabytes, slowdown = figure["gigabytes_per_second"], figure["slowdown"]
                add(result, f"SWAP {way}", f"{gigabytes:.1f} GB/s", f"steps {slowdown:+.1%}")
        for name, figure in result.get("served", {}).items():
            remark = f"{figure['requests_per_second']:.2f} req/s"
            if figure["failed"]:
                remark += f", {figure['failed']:.0f} of {figure['requests']:.0f} failed"
            add(result, name, f"{_percentiles(figure)}, ms", remark)
        for case in result.get("cases", ()):
            add(result, case["name"], f"{case['ms']:.3f} ms/token", _about_drafts(case))
    return "\n".join(lines)


def _about_drafts(case: Result) -> str:
    """How a case compares with none, and with what the formula says; what went wrong."""
    parts = []
    if "speedup" in case:
        parts.append(f"{case['speedup']:.2f} × without drafts")
    if "by_formula" in case:
        parts.append(f"{case['by_formula']['ms'] / case['ms']:.2f} × by formula")
    parts += [f"not {check.replace('_', ' ')}" for check in sorted(CASE_CHECKS) if not case.get(check, True)]
    return ", ".join(parts)


def _percentiles(figure: Result) -> str:
    """p50 / p95 / p99 of what a client sees."""
    parts = []
    for name in ("ttft", "itl", "tpot"):
        values = [f"{value:.1f}" for value in figure[f"{name}_ms"].values()]
        parts.append(f"{name.upper()} {' / '.join(values)}")
    return ", ".join(parts)
