"""When a failed attempt is followed by another one. Pure: clock and randomness come from outside."""

from __future__ import annotations

from dataclasses import dataclass, field

from client.health.replica import Replica
from client.relay.exchange import Answer
from client.upstream.classify import AWAY, BROKEN, BUSY, Verdict

BASE_DELAY = 0.025
MAX_DELAY = 1.0
BURST = 100.0
MAX_ENGINES_LOST = 3
"""Engines that may be lost under one request since its last token; it may be the request that kills them."""


class RetryBudget:
    """Bounds the retries that cost a server work to a share of all requests, so that an overload is not
    multiplied by those who wait for it to end."""

    def __init__(self) -> None:
        self._tokens = BURST

    def earn(self, ratio: float) -> None:
        """A request came in; it pays for `ratio` retries."""
        if self._tokens < BURST:
            self._tokens = min(BURST, self._tokens + ratio)

    def spend(self) -> bool:
        """Take one retry from the budget, if any is left."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


@dataclass(slots=True)
class Attempts:
    """The attempts of one request."""

    waits: bool = True
    """Whether it waits for lost servers to come back."""
    tried: set[Replica] = field(default_factory=set)
    failed: int = 0
    engines_lost: int = 0
    ticket: int = 0
    """That of the attempt under way, from its replica's breaker."""
    suspects: dict[Replica, int] = field(default_factory=dict)
    """Replicas that failed, perhaps because of the request, and the tickets of these attempts."""
    fault: Answer | Exception | None = None
    """The server error of which a second replica is asked its opinion."""

    def note(self, replica: Replica, verdict: Verdict, *, progressed: bool) -> None:
        """An attempt on `replica` failed with `verdict`; a stream that `progressed` counts afresh."""
        if progressed:
            self.tried.clear()
            self.failed = self.engines_lost = 0
            self.fault = None
        self.tried.add(replica)
        self.failed += 1
        self.engines_lost += verdict.engine_lost

    def is_lost_again(self, verdict: Verdict) -> bool:
        """Whether a server broke off, and not for the first time since the answer came further."""
        return verdict in (BROKEN, AWAY) and self.failed > 1

    def may_go_on(
        self, verdict: Verdict, max_attempts: int, budget: RetryBudget, *, died: bool = False
    ) -> bool:
        """Whether another attempt is allowed after one that ended with `verdict`.

        Who is busy costs budget. A server that breaks off or is away may do so since it died, and takes all
        of its requests with it: the first such loss of a request, or since it last came further, is free, and
        so are others where the server has `died` indeed; the rest cost. A server that cannot be reached gets
        no work, and engines have a limit of their own.
        """
        if not verdict.retry or self.failed >= max_attempts or self.engines_lost >= MAX_ENGINES_LOST:
            return False
        if verdict is BUSY or (self.is_lost_again(verdict) and not died):
            return budget.spend()
        return True

    def answered(self, now: float) -> None:
        """A replica answers the request: earlier failures were the replicas' own."""
        for replica, ticket in self.suspects.items():
            replica.breaker.failure(ticket, now)
        self.suspects.clear()

    def end(self) -> None:
        """No further attempt: a request that failed everywhere says nothing about the replicas."""
        for replica, ticket in self.suspects.items():
            replica.breaker.neutral(ticket)
        self.suspects.clear()

    def delay(self, chance: float) -> float:
        """Seconds before the next attempt: exponential, with full jitter from `chance` in [0, 1)."""
        return chance * min(MAX_DELAY, BASE_DELAY * 2.0 ** min(self.failed - 1, 10))
