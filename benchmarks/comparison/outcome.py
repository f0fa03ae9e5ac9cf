"""What was asked for and what was measured, as far as it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.comparison.sampler import Samples
from benchmarks.comparison.tuning import Trial
from benchmarks.loadgen.endpoint import Endpoint
from benchmarks.loadgen.measures import Objective
from benchmarks.loadgen.repeats import Result
from benchmarks.loadgen.traces import Trace

SATURATED = ("equal", "exponential", "sharegpt", "shared-prefix", "beams")
SWEPT = "exponential"
FRACTIONS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Rates of the sweep, as shares of the best throughput at saturation."""

SEEDS, REQUESTS = 5, 200
"""Minimum for every rate: fewer runs give wide intervals, fewer requests no meaningful percentiles."""


@dataclass(slots=True, frozen=True)
class Settings:
    """How much is run."""

    beams: int
    """Sequences that each server decodes side by side at most; as many clients saturate it."""
    requests: int = REQUESTS
    """Requests of a run."""
    seeds: int = SEEDS
    """Runs of every traffic and rate, each with requests of its own."""
    traffics: Sequence[str] = SATURATED
    traces: dict[str, Trace] = field(default_factory=dict)
    """Recorded traffics by name, replayed at their times."""
    fractions: Sequence[float] = FRACTIONS
    timeout: float = 600.0

    def steps(self) -> list[str | float]:
        """What is run, in order: traffics and traces by name, rates of the sweep as shares."""
        rates = self.fractions if SWEPT in self.traffics else ()
        return [*self.traffics, *self.traces, *rates]


@dataclass(slots=True)
class Outcome:
    """All that was measured."""

    endpoints: list[Endpoint]
    objective: Objective
    saturated: dict[str, list[Result]] = field(default_factory=dict)
    """By traffic, a result for each endpoint, in their order."""
    replayed: dict[str, list[Result]] = field(default_factory=dict)
    """The same for traces, which come at their own times."""
    samples: dict[str, list[Samples]] = field(default_factory=dict)
    """By traffic or trace, the samples of the last run."""
    sweep: dict[float, list[Result]] = field(default_factory=dict)
    """By rate, a result for each endpoint."""
    trials: list[Trial] = field(default_factory=list)
    """How the static-batching server was tuned; none where there is no such server."""
    steps: int = 0
    """How many traffics and rates there will be."""
    seconds_left: float | None = None
    """About how long the rest takes; None: not known yet."""

    @property
    def traffics(self) -> dict[str, list[Result]]:
        """What is compared traffic by traffic."""
        return self.saturated | self.replayed

    @property
    def done(self) -> int:
        """Traffics and rates that were measured."""
        return len(self.traffics) + len(self.sweep)

    @property
    def results(self) -> list[Result]:
        """All of them."""
        return [result for group in (*self.traffics.values(), *self.sweep.values()) for result in group]
