"""The comparison as one HTML page and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.charts import number
from benchmarks.comparison.headline import cards, over_traffics
from benchmarks.comparison.outcome import REQUESTS, SEEDS, SWEPT, Outcome, Settings
from benchmarks.comparison.plots import sweep_plots, traffic_plots
from benchmarks.comparison.sampler import Samples
from benchmarks.comparison.tuning import Trial, best
from benchmarks.comparison.verdicts import (
    best_of,
    between,
    described,
    overall,
    paired,
    with_interval,
)
from benchmarks.loadgen import measures
from benchmarks.loadgen.repeats import Result

FIGURES: list[tuple[str, str, bool]] = [
    ("requests/s", "requests_per_second", False),
    ("output tokens/s", "tokens_per_second", False),
    ("requests/s within the objective", "goodput_requests", False),
    ("time to first token p50, s", "ttft.p50", True),
    ("time per output token p50, s", "tpot.p50", True),
    ("latency p50, s", "latency.p50", True),
    ("latency p95, s", "latency.p95", True),
]
"""Rows of a table: heading, figure, whether less is better."""

METHOD = """<p>Every endpoint got the same requests (same prompts, same lengths, end of sequence ignored so
that answers have the length asked for), one endpoint after the other with every seed, after a warm-up that
is not counted. “All at once” is an open loop with every request due at the start; the other traffics at
saturation are a closed loop with as many clients as the continuous-batching server decodes sequences side by
side; traces come at their own times. Static batching answers whole, so its first token comes with its last.
“Rows computed for nothing” is the share of computed tokens that belong to rows that were done already.</p>
<p>Figures are means over the seeds; ± and the whiskers are 95 % confidence intervals by Student’s t
distribution. Ratios are paired: both endpoints had the same requests with each seed, and the interval is that
of the ratio. Where it contains 1, the difference is called none, and no figure is bold for it.</p>
<p>The client’s lag is how late the load generator itself was, at the 99th percentile: requests that it sent
late, or timers that fired late on its event loop. Where it is not small beside a latency, the figure is of
both.</p>"""


@dataclass(slots=True, frozen=True)
class About:
    """What the figures belong to."""

    command: str
    """What repeats the run."""
    facts: list[tuple[str, str]]
    """Model, code, versions, machine: (name, value)."""
    configurations: dict[str, Any] = field(default_factory=dict)
    """What the servers were configured with, by name."""


def write_report(path: Path, outcome: Outcome, settings: Settings, about: About) -> None:
    """Write the page to `path`, and all figures beside it as JSON; each replaces an older one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, page.page("Batching strategies compared", _body(outcome, settings, about)))
    _replace(path.with_suffix(".json"), json.dumps(_figures(outcome, about), indent=1))


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".part")
    fresh.write_text(text)
    fresh.replace(path)


def _body(outcome: Outcome, settings: Settings, about: About) -> list[str]:
    names = [endpoint.name for endpoint in outcome.endpoints]
    return [
        "<h1>Batching strategies compared</h1>",
        f'<p class="soft">{escape(_state(outcome, settings))}</p>',
        page.cards(cards(outcome)),
        page.legend(names),
        over_traffics(outcome),
        "<h2>What was run</h2>",
        page.facts([*about.facts, *_conditions(outcome, settings)]),
        "<p>Again, with the same requests:</p>",
        f"<pre>{escape(about.command)}</pre>",
        "<h2>In words</h2>",
        page.verdicts(overall(outcome)),
        *_sweep(outcome, names),
        *(part for traffic in outcome.traffics for part in _traffic(outcome, traffic, names)),
        *_tuning(outcome.trials),
        "<h2>How this was measured</h2>",
        METHOD,
        page.details("Definitions of the figures", measures.__doc__ or ""),
        page.details("Configurations of the servers", json.dumps(about.configurations, indent=1)),
    ]


def _state(outcome: Outcome, settings: Settings) -> str:
    """How much of the run is here, and whether it is enough."""
    said = "The same requests to every server, in turn."
    if outcome.done < outcome.steps:
        said += f" So far {outcome.done} of {outcome.steps} traffics and rates"
        left = outcome.seconds_left
        said += "." if left is None else f"; the rest takes about {duration(left)}."
    if settings.seeds < SEEDS or settings.requests < REQUESTS:
        said += (
            f" A short run: {settings.requests} requests with each of {settings.seeds} seeds. "
            f"A finding takes {REQUESTS} with each of {SEEDS}."
        )
    return said


def duration(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds:.0f}\N{NO-BREAK SPACE}s" if seconds < 90 else f"{seconds / 60:.0f}\N{NO-BREAK SPACE}min"


def _conditions(outcome: Outcome, settings: Settings) -> list[tuple[str, str]]:
    lags = [lag for result in outcome.results for lag in result.client_lags]
    late = f"at most {1000 * max(lags):.1f} ms (p99 of a run)" if lags else "not measured yet"
    return [
        ("runs", f"{settings.seeds} seeds, {settings.requests} requests each"),
        ("objective", str(outcome.objective)),
        ("client lag", late),
    ]


def _sweep(outcome: Outcome, names: list[str]) -> list[str]:
    if not outcome.sweep:
        return []
    said = f"{described(SWEPT)}, arriving at random (Poisson) at rising rates."
    rows = []
    for rate, results in outcome.sweep.items():
        for i, result in enumerate(results):
            rows.append([number(rate), page.named(result.endpoint, i % page.COLOURS), *_sweep_cells(result)])
    head = [
        "offered req/s",
        "server",
        "tokens/s",
        "in objective",
        "latency p50",
        "latency p95",
        "client lag p99",
        "errors",
    ]
    return [
        "<h2>Latency by load</h2>",
        f"<p>{escape(said)}</p>",
        page.legend(names),
        page.charts(sweep_plots(outcome)),
        page.table(head, rows, text_columns=2),
    ]


def _sweep_cells(result: Result) -> list[str]:
    share = result.interval("goodput_share")
    kept = "–" if share is None else f"{share.mean:.0%}" + (f" ±{share.half:.0%}" if share.known else "")
    figures = [with_interval(result.interval(name)) for name in ("latency.p50", "latency.p95")]
    return [
        with_interval(result.interval("tokens_per_second")),
        kept,
        *figures,
        _lag(result),
        str(result.errors),
    ]


def _lag(result: Result) -> str:
    return f"{1000 * max(result.client_lags):.1f} ms"


def _traffic(outcome: Outcome, traffic: str, names: list[str]) -> list[str]:
    results = outcome.traffics[traffic]
    arrivals = results[0].arrivals
    load = {"all": "all at once", "trace": "at the times of the trace"}.get(
        arrivals, f"{arrivals.removeprefix('closed:')} clients"
    )
    samples = outcome.samples[traffic]
    return [
        f"<h2>{escape(described(traffic))}</h2>",
        f'<p class="soft">{len(results[0].records[0])} requests, {load}, {len(results[0].runs)} seeds.</p>',
        _table(results, samples),
        page.legend(names),
        page.charts(traffic_plots(results, samples)),
    ]


def _table(results: Sequence[Result], samples: Sequence[Samples]) -> str:
    """A row for each figure, a column for each endpoint."""
    rows = []
    for head, figure, less in FIGURES:
        winner = best_of(results, figure, lowest=less)
        cells = [with_interval(result.interval(figure)) for result in results]
        rows.append([head, *("*" + cell if i == winner else cell for i, cell in enumerate(cells))])
    last = results[-1]
    ratios = [paired(result, last, "tokens_per_second") for result in results[:-1]]
    if ratios:
        told = ["–" if one is None else between(one) for one in ratios]
        rows.append([f"tokens/s, by those of {escape(last.endpoint)}", *told, ""])
    wasted = [seen.wasted_share() for seen in samples]
    rows += [
        ["requests running, mean", *(number(seen.mean_running()) for seen in samples)],
        ["rows computed for nothing", *("–" if one is None else f"{one:.0%}" for one in wasted)],
        ["client lag p99", *map(_lag, results)],
        ["errors", *(str(result.errors) for result in results)],
    ]
    return page.table(
        ["figure", *(page.named(one.endpoint, i % page.COLOURS) for i, one in enumerate(results))], rows
    )


def _tuning(trials: Sequence[Trial]) -> list[str]:
    """What the static-batching server did with each package size and interval."""
    if not trials:
        return []
    chosen = best(trials)
    sizes, intervals = (sorted({getattr(one, name) for one in trials}) for name in ("size", "interval"))
    by_place = {(one.size, one.interval): one for one in trials}
    rows = []
    for size in sizes:
        row = [f"{size} sequences"]
        for wait in intervals:
            trial = by_place[size, wait]
            mark = "*" if trial is chosen else ""
            row.append(mark + with_interval(trial.result.interval("tokens_per_second")))
        rows.append(row)
    first = chosen.result
    clients, count = first.arrivals.removeprefix("closed:"), first.runs[0].requests
    return [
        "<h2>How static batching was tuned</h2>",
        f"<p>Tokens per second by package size and interval, under “{escape(first.traffic)}” with "
        f"{clients} clients, {len(first.runs)} seeds of {count} requests. Everything above was measured with "
        f"the best, {chosen.size} sequences and {chosen.interval:g} s.</p>",
        page.table(["package", *(f"interval {wait:g} s" for wait in intervals)], rows),
    ]


def _figures(outcome: Outcome, about: About) -> dict[str, Any]:
    by_name = {name: [one.to_dict() for one in results] for name, results in outcome.traffics.items()}
    return {
        "about": dict(about.facts),
        "command": about.command,
        "configurations": about.configurations,
        "objective": asdict(outcome.objective),
        "tuning": [
            {"size": one.size, "interval": one.interval, **one.result.to_dict()} for one in outcome.trials
        ],
        "saturated": {name: by_name[name] for name in outcome.saturated},
        "replayed": {name: by_name[name] for name in outcome.replayed},
        "samples": {name: [asdict(one) for one in samples] for name, samples in outcome.samples.items()},
        "sweep": {str(rate): [r.to_dict() for r in results] for rate, results in outcome.sweep.items()},
    }
