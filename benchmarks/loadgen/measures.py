"""From records to figures.

- *latency*: from when a request was due to the end of its answer. In an open loop a request that
  could not be sent in time still counts from when it should have been, so that a stall of the
  server (or of this program) is not hidden.
- *time to first token* (TTFT): from due to the first text.
- *time per output token* (TPOT): from the first text to the last, by the tokens after the first; of
  streamed answers with two tokens or more.
- *inter-token latency* (ITL): gaps between pieces of text, all requests together.
- *throughput*: answered requests, and their tokens, by the time from the first request that was due
  to the last answer.
- *goodput*: the same, of those requests alone that keep the objective (SLO).
- percentiles: linear between the two nearest ranks (numpy's default).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.loadgen.endpoint import Record

Distribution = dict[str, float]
"""mean, p50, p90, p95, p99, max."""


class ObjectiveError(ValueError):
    """A service level objective that is not written as one."""


@dataclass(slots=True, frozen=True)
class Objective:
    """A service level objective in seconds; None: no limit.

    `per_token` limits latency by the length of the answer: a request may take `base` seconds and as
    many more for each of its tokens, which is fair to answers that come whole.
    """

    ttft: float | None = None
    tpot: float | None = None
    latency: float | None = None
    base: float = 0.0
    per_token: float | None = None

    def kept(self, record: Record) -> bool:
        """Whether the request was answered as the objective demands."""
        if record.error is not None or record.first is None:
            return False
        latency = record.end - record.due
        checks = (
            (self.ttft, record.first - record.due),
            (self.tpot, tpot(record) or 0.0),
            (self.latency, latency),
            (self.per_token and self.base + self.per_token * record.new_tokens, latency),
        )
        return all(limit is None or value <= limit for limit, value in checks)

    def __str__(self) -> str:
        parts = [
            f"{name} ≤ {limit:g} s"
            for name, limit in (
                ("first token", self.ttft),
                ("time per token", self.tpot),
                ("latency", self.latency),
            )
            if limit is not None
        ]
        if self.per_token is not None:
            parts.append(f"latency ≤ {self.base:g} s + {self.per_token:g} s per token")
        return " and ".join(parts) or "answered at all"


def parse_objective(text: str) -> Objective:
    """``ttft=1,tpot=0.1,latency=20,base=2,per_token=0.05``, each optional.

    Raises:
        ObjectiveError: it is not written so.
    """
    values: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in Objective.__slots__:
            raise ObjectiveError(f"{part!r}: an objective has {', '.join(Objective.__slots__)}")
        try:
            values[name] = float(value)
        except ValueError:
            raise ObjectiveError(f"{part!r}: {value!r} is not a number of seconds") from None
    return Objective(**values)


@dataclass(slots=True)
class Summary:
    """The figures of one run; times in seconds, rates per second."""

    requests: int
    errors: dict[str, int]
    seconds: float
    requests_per_second: float
    tokens_per_second: float
    goodput_requests: float
    goodput_tokens: float
    goodput_share: float
    """Share of all requests that kept the objective."""
    latency: Distribution
    ttft: Distribution
    tpot: Distribution
    itl: Distribution
    lag: Distribution
    """From due to sent: what the load generator itself was late."""


def tpot(record: Record) -> float | None:
    """Time per output token of a streamed answer, None where that means nothing."""
    if record.first is None or not record.pieces or record.new_tokens < 2:
        return None
    return (record.pieces[-1] - record.first) / (record.new_tokens - 1)


def distribution(values: Sequence[float]) -> Distribution:
    """Mean, percentiles and maximum; empty where there are no values."""
    if not values:
        return {}
    p50, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99])
    return {
        "mean": float(np.mean(values)),
        "p50": float(p50),
        "p90": float(p90),
        "p95": float(p95),
        "p99": float(p99),
        "max": float(max(values)),
    }


def summarise(records: Sequence[Record], objective: Objective) -> Summary:
    """The figures of one run."""
    answered = [record for record in records if record.error is None]
    good = [record for record in answered if objective.kept(record)]
    errors: dict[str, int] = {}
    for record in records:
        if record.error is not None:
            errors[record.error] = errors.get(record.error, 0) + 1
    first_due = min((record.due for record in records), default=0.0)
    seconds = max((record.end for record in records), default=0.0) - first_due
    per_second = 1.0 / seconds if seconds > 0 else 0.0
    gaps: list[float] = []
    for record in answered:
        if record.first is not None and record.pieces:
            gaps += np.diff([record.first, *record.pieces]).tolist()
    return Summary(
        requests=len(records),
        errors=errors,
        seconds=seconds,
        requests_per_second=len(answered) * per_second,
        tokens_per_second=sum(record.new_tokens for record in answered) * per_second,
        goodput_requests=len(good) * per_second,
        goodput_tokens=sum(record.new_tokens for record in good) * per_second,
        goodput_share=len(good) / len(records) if records else 0.0,
        latency=distribution([record.end - record.due for record in answered]),
        ttft=distribution([record.first - record.due for record in answered if record.first is not None]),
        tpot=distribution([value for record in answered if (value := tpot(record)) is not None]),
        itl=distribution(gaps),
        lag=distribution([record.sent - record.due for record in records]),
    )
