"""How sure a figure is that was measured several times, with Student's t distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5th percentiles of the t distribution with 1, 2, … 30 degrees of freedom."""


@dataclass(slots=True, frozen=True)
class Interval:
    """A mean over runs, and where the true one lies with 95 % confidence.

    A single run has no interval: `low` and `high` are infinite.
    """

    mean: float
    low: float
    high: float
    runs: int

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2

    @property
    def known(self) -> bool:
        """Whether there were enough runs for an interval."""
        return self.runs > 1

    def to_dict(self) -> dict[str, float | None]:
        """For a JSON file, which knows no infinite numbers."""
        low, high = (self.low, self.high) if self.known else (None, None)
        return {"mean": self.mean, "low": low, "high": high, "runs": self.runs}


def interval(values: Sequence[float]) -> Interval:
    """The mean of `values` with its 95 % confidence interval."""
    mean, runs = statistics.fmean(values), len(values)
    if runs == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = _t(runs - 1) * statistics.stdev(values) / math.sqrt(runs)
    return Interval(mean, mean - half, mean + half, runs)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Interval | None:
    """How many times the second of each pair the first one is, on (geometric) average.

    Runs are paired by seed: both had the same requests, so that what all requests of a seed have in common
    does not count as chance. None where a value is not above 0.
    """
    if not numerators or min(*numerators, *denominators) <= 0:
        return None
    pairs = zip(numerators, denominators, strict=True)
    logs = interval([math.log(one / other) for one, other in pairs])
    return Interval(math.exp(logs.mean), math.exp(logs.low), _exp(logs.high), logs.runs)


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios: twice and half cancel out."""
    return math.exp(statistics.fmean(map(math.log, values)))


def differs(found: Interval | None) -> bool:
    """Whether a ratio is another one than 1 with 95 % confidence."""
    return found is not None and found.known and not found.low <= 1.0 <= found.high


def _t(degrees: int) -> float:
    # beyond the table it is within a thousandth of this
    return _T_975[degrees - 1] if degrees <= len(_T_975) else 1.96 + 2.5 / degrees


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)
