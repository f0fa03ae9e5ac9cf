"""Circuit breaker of one replica: stops sending requests to a server that keeps failing them.

Pure: the caller brings the clock.
"""

from __future__ import annotations

from enum import StrEnum

WINDOW = 20
OPEN_AT = 10
"""Failures among the last `WINDOW` outcomes that open the breaker."""
OPEN_AT_ONCE = 5
"""Failures in a row that open it."""
COOL_DOWN = 1.0
MAX_COOL_DOWN = 30.0

_MASK = (1 << WINDOW) - 1
_ROW = (1 << OPEN_AT_ONCE) - 1


class BreakerState(StrEnum):
    """`HALF_OPEN` lets one request through to see whether the server has recovered."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Counts failures; opens for a cool-down that doubles each time the trial request fails.

    Each request has a ticket, by which its result is taken for what it says: a request that was sent before
    the breaker opened, or to the process before, tells nothing of the time after.
    """

    __slots__ = ("_cool_down", "_first", "_history", "_retry_at", "_tickets", "_trial")

    def __init__(self) -> None:
        self._history = 0  # one bit an outcome, the newest lowest; 1 is a failure
        self._retry_at: float | None = None
        self._cool_down = COOL_DOWN
        self._tickets = 0
        self._first = 0  # older tickets count no more
        self._trial: int | None = None

    def state(self, now: float) -> BreakerState:
        if self._retry_at is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._retry_at else BreakerState.HALF_OPEN

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now."""
        return self._retry_at is None or (now >= self._retry_at and self._trial is None)

    def sent(self) -> int:
        """A request is on its way; unless the breaker is closed the first one is the trial.

        Returns:
            Its ticket.
        """
        self._tickets += 1
        if self._retry_at is not None and self._trial is None:
            self._trial = self._tickets
        return self._tickets

    def success(self, ticket: int) -> None:
        """The request with this ticket was answered."""
        if ticket <= self._first:
            return
        if self._retry_at is None:
            self._history = (self._history << 1) & _MASK
        else:
            self.reset()

    def neutral(self, ticket: int) -> None:
        """The request says nothing about the server's health."""
        if ticket == self._trial:
            self._trial = None

    def failure(self, ticket: int, now: float) -> None:
        """The request with this ticket failed."""
        if ticket <= self._first:
            return
        if self._retry_at is not None:
            if ticket == self._trial:  # others that went out beside it say the same once more
                self._cool_down = min(2 * self._cool_down, MAX_COOL_DOWN)
                self._retry_at = now + self._cool_down
                self._trial = None
            return
        self._history = (self._history << 1 | 1) & _MASK
        if self._history & _ROW == _ROW or self._history.bit_count() >= OPEN_AT:
            self._retry_at = now + self._cool_down
            self._first = self._tickets

    def reset(self) -> None:
        """Close: the server is well, or is a new process."""
        self._history, self._retry_at, self._cool_down, self._trial = 0, None, COOL_DOWN, None
        self._first = self._tickets
