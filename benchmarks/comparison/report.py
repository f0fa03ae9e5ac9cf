"""The comparison as one HTML page and as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.charts import number
from benchmarks.comparison.plan import SWEPT, Outcome
from benchmarks.comparison.plots import sweep_plots, traffic_plots
from benchmarks.comparison.sampler import Samples
from benchmarks.comparison.verdicts import DESCRIPTIONS, best_of, overall, verdict
from benchmarks.loadgen import measures
from benchmarks.loadgen.repeats import Result
from benchmarks.machine import processor
from benchmarks.page import COLOURS, charts, details, facts, named, page, table, verdicts

FIGURES: list[tuple[str, str, bool]] = [
    ("req/s", "requests_per_second", False),
    ("tokens/s", "tokens_per_second", False),
    ("goodput req/s", "goodput_requests", False),
    ("first token p50", "ttft.p50", True),
    ("per token p50", "tpot.p50", True),
    ("latency p50", "latency.p50", True),
    ("latency p95", "latency.p95", True),
    ("latency p99", "latency.p99", True),
]
"""Columns of a table: heading, figure, whether less is better."""

METHOD = """<p>Every endpoint got the same requests (same prompts, same lengths, end of sequence ignored so
that answers have the length asked for), one endpoint after the other in every repeat, after a warm-up that
is not counted. “All at once” is an open loop with every request due at the start; the other traffics at
saturation are a closed loop with as many clients as the servers decode sequences side by side. Static
batching answers whole, so its first token comes with its last. “Running” is the mean number of requests in
the batch, “wasted” the share of computed tokens that belong to rows that were done already.</p>"""


def machine() -> list[tuple[str, str]]:
    """What this runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [("processor", f"{processor()}, {cores} cores"), ("Python", platform.python_version())]


def write_report(path: Path, outcome: Outcome, about: list[tuple[str, str]]) -> None:
    """Write the page to `path`, and all figures beside it as JSON; each replaces an older one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, page("Batching strategies compared", _body(outcome, about)))
    _replace(path.with_suffix(".json"), json.dumps(_figures(outcome, about), indent=1))


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".part")
    fresh.write_text(text)
    fresh.replace(path)


def _body(outcome: Outcome, about: list[tuple[str, str]]) -> list[str]:
    body = [
        "<h1>Batching strategies compared</h1>",
        facts([("date", datetime.now().strftime("%Y-%m-%d %H:%M")), *about]),
        verdicts(overall(outcome)),
        f'<p class="soft">Objective for goodput: {escape(str(outcome.objective))}. Times are in seconds. '
        "Each figure is the median of the runs; its range shows when hovering. Bold is best.</p>",
    ]
    if outcome.sweep:
        about_sweep = f"{_capital(DESCRIPTIONS[SWEPT])}, arriving at random (Poisson) at rising rates."
        body += ["<h2>Latency by load</h2>", f"<p>{escape(about_sweep)}</p>", charts(sweep_plots(outcome))]
    for traffic, results in outcome.saturated.items():
        body += _traffic(outcome, traffic, results)
    definitions = details("Definitions of the figures", measures.__doc__ or "")
    return [*body, "<h2>How this was measured</h2>", METHOD, definitions]


def _traffic(outcome: Outcome, traffic: str, results: list[Result]) -> list[str]:
    arrivals = results[0].arrivals
    load = "all at once" if arrivals == "all" else f"{arrivals.removeprefix('closed:')} clients"
    samples = outcome.samples[traffic]
    return [
        f"<h2>{escape(_capital(DESCRIPTIONS.get(traffic, traffic)))}</h2>",
        f"<p>{verdict(outcome, traffic)}</p>",
        f'<p class="soft">{len(results[0].records[0])} requests, {load}, {len(results[0].runs)} runs.</p>',
        _table(results, samples),
        charts(traffic_plots(results, samples)),
    ]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _table(results: Sequence[Result], samples: Sequence[Samples]) -> str:
    best = {figure: best_of(results, figure, lowest=less) for _, figure, less in FIGURES}
    rows = []
    for i, (result, seen) in enumerate(zip(results, samples, strict=True)):
        cells = [named(result.endpoint, i % COLOURS)]
        for _, figure, _ in FIGURES:
            mark = "*" if best[figure] == i and len(results) > 1 else ""
            cells.append(mark + _cell(result, figure))
        wasted = seen.wasted_share()
        cells += [number(seen.mean_running()), "–" if wasted is None else f"{wasted:.0%}", str(result.errors)]
        rows.append(cells)
    return table(["", *(head for head, _, _ in FIGURES), "running", "wasted", "errors"], rows)


def _cell(result: Result, figure: str) -> str:
    spread = result.spread(figure)
    if spread is None:
        return "–"
    return f'<span title="{number(spread.low)} to {number(spread.high)}">{number(spread.median)}</span>'


def _figures(outcome: Outcome, about: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "about": dict(about),
        "objective": asdict(outcome.objective),
        "saturated": {name: [r.to_dict() for r in results] for name, results in outcome.saturated.items()},
        "samples": {name: [asdict(one) for one in samples] for name, samples in outcome.samples.items()},
        "sweep": {str(rate): [r.to_dict() for r in results] for rate, results in outcome.sweep.items()},
    }
