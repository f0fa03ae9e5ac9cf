"""The figures of one endpoint as plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.charts import Axis, Series, cumulative, line_chart
from benchmarks.loadgen.endpoint import Record
from benchmarks.loadgen.measures import parse_objective, tpot
from benchmarks.loadgen.repeats import Result
from benchmarks.page import COLOURS, charts, facts, legend, page


def write_plots(path: Path, results: Sequence[Result], objective: str) -> None:
    """Write a page with the distributions of every result, and, of several, their curve."""
    first = results[0]
    body = [
        f"<h1>{first.traffic} against {first.endpoint}</h1>",
        facts([("objective", str(parse_objective(objective))), ("runs", str(len(first.runs)))]),
        legend([result.arrivals for result in results]),
        charts(_distributions(results)),
    ]
    if len(results) > 1:
        body.append(charts([_curve(results, name) for name in ("ttft.p50", "latency.p95")]))
    path.write_text(page("Load test", body))


def _distributions(results: Sequence[Result]) -> list[str]:
    kinds = {
        "Latency": [[r.end - r.due for r in _answered(result)] for result in results],
        "Time to first token": [
            [r.first - r.due for r in _answered(result) if r.first is not None] for result in results
        ],
        "Time per output token": [
            [value for r in _answered(result) if (value := tpot(r)) is not None] for result in results
        ],
    }
    return [
        line_chart(
            title,
            Axis("seconds"),
            Axis("% of requests", high=100.0),
            [
                Series(result.arrivals, cumulative(values), i % COLOURS, markers=False)
                for i, (result, values) in enumerate(zip(results, lists, strict=True))
            ],
        )
        for title, lists in kinds.items()
        if any(lists)
    ]


def _answered(result: Result) -> list[Record]:
    return [record for records in result.records for record in records if record.error is None]


def _curve(results: Sequence[Result], figure: str) -> str:
    points, notes, ranges = [], [], []
    for result in results:
        throughput, latency = result.interval("tokens_per_second"), result.interval(figure)
        if throughput is not None and latency is not None:
            points.append((throughput.mean, latency.mean))
            ranges.append((latency.low, latency.high) if latency.known else None)
            notes.append(f"{result.arrivals}: {throughput.mean:.0f} tokens/s, {latency.mean:.3g} s")
    title = f"{figure.replace('.', ' ')} by throughput"
    series = [Series(results[0].traffic, points, 0, notes=notes, ranges=ranges)]
    return line_chart(title, Axis("tokens per second"), Axis("seconds"), series)
