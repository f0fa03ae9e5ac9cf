"""When a failed attempt is followed by another one. Pure: clock and randomness come from outside."""

from __future__ import annotations

from dataclasses import dataclass, field

from client.classify import Suspicion, Verdict
from client.replicas import Replica

BASE_DELAY = 0.025
MAX_DELAY = 1.0
BURST = 100.0
MAX_ENGINES_LOST = 3
"""Engines that may be lost under one request since its last token; it may be the request that kills them."""


class RetryBudget:
    """Bounds the retries of refused requests to a share of all requests, so that an overload is not
    multiplied by those who wait for it to end."""

    def __init__(self) -> None:
        self._tokens = BURST

    def earn(self, ratio: float) -> None:
        """A request came in; it pays for `ratio` retries."""
        if self._tokens < BURST:
            self._tokens = min(BURST, self._tokens + ratio)

    def spend(self) -> bool:
        """Take one retry, if there is one left."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


@dataclass(slots=True)
class Attempts:
    """What one request has been through."""

    tried: set[Replica] = field(default_factory=set)
    failed: int = 0
    engines_lost: int = 0

    def note(self, replica: Replica, verdict: Verdict, *, progressed: bool) -> None:
        """An attempt on `replica` failed with `verdict`; a stream that `progressed` counts afresh."""
        if progressed:
            self.tried.clear()
            self.failed = self.engines_lost = 0
        self.tried.add(replica)
        self.failed += 1
        self.engines_lost += verdict.engine_lost

    def may_go_on(self, verdict: Verdict, max_attempts: int, budget: RetryBudget) -> bool:
        """Whether another attempt is allowed after one that ended with `verdict`."""
        if not verdict.retry or self.failed >= max_attempts or self.engines_lost >= MAX_ENGINES_LOST:
            return False
        if verdict.suspicion is Suspicion.NONE:
            return budget.spend()
        return True  # a lost server or engine is no sign of overload, and gets no work until it is back

    def delay(self, chance: float) -> float:
        """Seconds before the next attempt: exponential, with full jitter from `chance` in [0, 1)."""
        return chance * min(MAX_DELAY, BASE_DELAY * 2.0 ** (self.failed - 1))
