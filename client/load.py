"""How much work a replica has: leases of this gateway, corrected by what the server reports.

Work is counted in generated tokens (`protocol.work`). Pure: the caller brings the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

CORRECTION_SECONDS = 5.0
"""A report fades out linearly over this time: it is a picture of the past."""


class Load:
    """Expected outstanding work of one replica."""

    __slots__ = ("_corrected_at", "_correction", "leased", "leases", "picks")

    def __init__(self) -> None:
        self.leased = 0
        """Tokens that this gateway still expects of the replica."""
        self.leases: set[Lease] = set()
        self.picks = 0
        """Leases ever given; breaks ties in turn."""
        self._correction = 0.0
        self._corrected_at = 0.0

    def lease(self, tokens: int, lost: Callable[[], None]) -> Lease:
        """Reserve `tokens` of work; use as a context manager. `lost` is called if the replica is given up."""
        return Lease(self, tokens, lost)

    def expected(self, now: float) -> float:
        """Outstanding tokens."""
        if self._correction:
            left = 1.0 - (now - self._corrected_at) / CORRECTION_SECONDS
            if left > 0.0:
                return max(0.0, self.leased + self._correction * left)
            self._correction = 0.0
        return self.leased

    def report(self, pending_tokens: int, now: float) -> None:
        """The server says how much work it has: more than is leased here where others use it too,
        less where it is further than the leases tell."""
        self._correction = pending_tokens - self.leased
        self._corrected_at = now


class Lease:
    """Work given to a replica, handed back exactly once however the request ends."""

    __slots__ = ("_load", "_tokens", "lost")

    def __init__(self, load: Load, tokens: int, lost: Callable[[], None]) -> None:
        self._load = load
        self._tokens = tokens
        self.lost = lost

    def __enter__(self) -> Lease:
        load = self._load
        load.leased += self._tokens
        load.picks += 1
        load.leases.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._load.leased -= self._tokens
        self._tokens = 0
        self._load.leases.discard(self)

    def advance(self, tokens: int) -> None:
        """`tokens` of the work are done."""
        done = min(tokens, self._tokens)
        self._tokens -= done
        self._load.leased -= done
