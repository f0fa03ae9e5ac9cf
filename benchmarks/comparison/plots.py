"""The plots of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.charts import Axis, Series, cumulative, line_chart
from benchmarks.comparison.outcome import Outcome
from benchmarks.comparison.sampler import Samples
from benchmarks.loadgen.repeats import Result
from benchmarks.page import COLOURS

SECONDS = Axis("seconds")
LOG_SECONDS = Axis("seconds", log=True)


def sweep_plots(outcome: Outcome) -> list[str]:
    """Latency by delivered throughput, and figures by offered rate."""
    return [
        _latency_by_throughput(outcome),
        _by_rate(outcome, "Median latency", "latency.p50", LOG_SECONDS),
        _by_rate(outcome, "95th percentile of latency", "latency.p95", LOG_SECONDS),
        _by_rate(outcome, "Median time to first token", "ttft.p50", LOG_SECONDS),
        _by_rate(
            outcome, "Requests that keep the objective", "goodput_share", Axis("%", low=0, high=100), 100.0
        ),
        _by_rate(outcome, "Goodput", "goodput_requests", Axis("requests per second")),
    ]


def _latency_by_throughput(outcome: Outcome) -> str:
    notes = [f"{rate:.1f} requests/s offered" for rate in outcome.sweep]
    series = []
    for i, endpoint in enumerate(outcome.endpoints):
        results = [at_rate[i] for at_rate in outcome.sweep.values()]
        points = [(result.mean("tokens_per_second"), result.mean("latency.p50")) for result in results]
        series.append(
            Series(endpoint.name, points, i % COLOURS, notes=notes, ranges=_ranges(results, "latency.p50"))
        )
    x = Axis("tokens per second, delivered")
    return line_chart("Median latency by throughput", x, Axis("seconds", log=True), series)


def _by_rate(outcome: Outcome, title: str, figure: str, y: Axis, scale: float = 1.0) -> str:
    series = []
    for i, endpoint in enumerate(outcome.endpoints):
        results = [at_rate[i] for at_rate in outcome.sweep.values()]
        points = [
            (rate, scale * result.mean(figure)) for rate, result in zip(outcome.sweep, results, strict=True)
        ]
        ranges = _ranges(results, figure, scale)
        series.append(Series(endpoint.name, points, i % COLOURS, ranges=ranges))
    return line_chart(title, Axis("requests per second, offered"), y, series)


def _ranges(results: Sequence[Result], figure: str, scale: float = 1.0) -> list[tuple[float, float] | None]:
    """95 % intervals, of which the part below 0 means nothing."""
    found = [result.interval(figure) for result in results]
    return [(max(scale * one.low, 0.0), scale * one.high) if one and one.known else None for one in found]


def traffic_plots(results: Sequence[Result], samples: Sequence[Samples]) -> list[str]:
    """Distributions of all runs; batch and cache over time of the last one."""
    latency, first = [], []
    for result in results:
        answered = [record for run in result.records for record in run if record.error is None]
        latency.append([record.end - record.due for record in answered])
        first.append([record.first - record.due for record in answered if record.first is not None])
    plots = [_distribution("Latency", results, latency), _distribution("Time to first token", results, first)]
    running = [list(zip(seen.times, seen.running, strict=True)) for seen in samples]
    if any(running):
        plots.append(_over_time("Requests in the batch", results, running, Axis("requests")))
    cache = [[(t, 100 * share) for t, share in zip(seen.times, seen.cache, strict=True)] for seen in samples]
    used = [points if any(share for _, share in points) else [] for points in cache]
    if any(used):
        plots.append(_over_time("KV cache in use", results, used, Axis("% of blocks")))
    return plots


def _distribution(title: str, results: Sequence[Result], values: Sequence[list[float]]) -> str:
    series = [
        Series(result.endpoint, cumulative(part), i % COLOURS, markers=False)
        for i, (result, part) in enumerate(zip(results, values, strict=True))
    ]
    return line_chart(title, SECONDS, Axis("% of requests", high=100.0), series)


def _over_time(
    title: str, results: Sequence[Result], points: Sequence[list[tuple[float, float]]], y: Axis
) -> str:
    series = [
        Series(result.endpoint, part, i % COLOURS, markers=False)
        for i, (result, part) in enumerate(zip(results, points, strict=True))
        if part
    ]
    return line_chart(title, SECONDS, y, series)
