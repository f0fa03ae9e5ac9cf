"""Several runs of the same traffic, and what they have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from benchmarks.loadgen.arrivals import Arrivals
from benchmarks.loadgen.endpoint import Endpoint, Record
from benchmarks.loadgen.intervals import Interval, interval
from benchmarks.loadgen.lag import client_lag, timer_lag
from benchmarks.loadgen.measures import Objective, Summary, summarise
from benchmarks.loadgen.run import run
from benchmarks.loadgen.traffic import Request

WARM_UP_SEED = 2**20


@dataclass(slots=True)
class Result:
    """All runs of one traffic against one endpoint."""

    endpoint: str
    traffic: str
    arrivals: str
    runs: list[Summary] = field(default_factory=list)
    records: list[list[Record]] = field(default_factory=list)
    client_lags: list[float] = field(default_factory=list)
    """How late the load generator itself was in each run (`lag.client_lag`)."""

    def add(self, records: list[Record], objective: Objective, client_lag: float = 0.0) -> None:
        """A further run."""
        self.records.append(records)
        self.runs.append(summarise(records, objective))
        self.client_lags.append(client_lag)

    def values(self, name: str) -> list[float]:
        """A figure of each run that has it, by its path (``latency.p95``)."""
        return [value for run in self.runs if (value := flat(asdict(run)).get(name)) is not None]

    def interval(self, name: str) -> Interval | None:
        """A figure over the runs; None where no run has it."""
        values = self.values(name)
        return interval(values) if values else None

    def mean(self, name: str) -> float:
        """The mean of a figure over the runs; 0 where no run has it."""
        found = self.interval(name)
        return 0.0 if found is None else found.mean

    @property
    def errors(self) -> int:
        """Failed requests of all runs."""
        return sum(sum(run.errors.values()) for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the raw records."""
        runs = [asdict(run) for run in self.runs]
        names = flat(runs[0])
        return {
            "endpoint": self.endpoint,
            "traffic": self.traffic,
            "arrivals": self.arrivals,
            "runs": runs,
            "client_lag_p99": self.client_lags,
            "over_runs": {
                name: found.to_dict() for name in names if (found := self.interval(name)) is not None
            },
        }


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested figures with their paths as keys."""
    result: dict[str, float] = {}
    for name, value in values.items():
        if name == "errors":
            continue
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value
    return result


async def measure(
    endpoint: Endpoint,
    requests: Sequence[Sequence[Request]],
    arrivals: Arrivals,
    objective: Objective,
    *,
    traffic: str,
    warm_up: Sequence[Request] = (),
    timeout: float = 600.0,
    progress: bool = True,
) -> Result:
    """Run a traffic once for each list in `requests`, after `warm_up`, which is not measured."""
    if warm_up:
        await run(endpoint, warm_up, Arrivals("all"), timeout=timeout)
    result = Result(endpoint.name, traffic, arrivals.text)
    total = sum(map(len, requests))
    title = f"{endpoint.name} · {traffic} · {arrivals.text}"
    with tqdm(total=total, unit="req", desc=title, disable=not progress, leave=False) as bar:
        for seed, part in enumerate(requests):
            async with timer_lag() as late:
                records = await run(
                    endpoint,
                    part,
                    arrivals,
                    seed=seed,
                    timeout=timeout,
                    on_done=lambda _: bar.update() and None,
                )
            result.add(records, objective, client_lag(records, late))
    return result


def table(results: Sequence[Result]) -> Iterator[str]:
    """The main figures of each result as lines of text: means over the runs, with 95 % intervals."""
    head = "endpoint,traffic,arrivals,req/s,tok/s,goodput,ttft p50,p99,tpot p50,latency p50,p95,p99,errors"
    figures = "requests_per_second tokens_per_second goodput_requests ttft.p50 ttft.p99 tpot.p50 "
    figures += "latency.p50 latency.p95 latency.p99"
    rows = [head.split(",")]
    for result in results:
        cells = [_figure(result.interval(name)) for name in figures.split()]
        rows.append(
            [
                result.endpoint,
                result.traffic,
                result.arrivals,
                *cells,
                str(result.errors),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()


def _figure(found: Interval | None) -> str:
    if found is None:
        return "–"
    return _short(found.mean) + (f" ±{_short(found.half)}" if found.known else "")


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
