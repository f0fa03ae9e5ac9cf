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
    """Counts failures; opens for a cool-down that doubles each time the trial request fails."""

    __slots__ = ("_cool_down", "_history", "_retry_at", "_trial")

    def __init__(self) -> None:
        self._history = 0  # one bit an outcome, the newest lowest; 1 is a failure
        self._retry_at: float | None = None
        self._cool_down = COOL_DOWN
        self._trial = False

    def state(self, now: float) -> BreakerState:
        if self._retry_at is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._retry_at else BreakerState.HALF_OPEN

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now."""
        return self._retry_at is None or (now >= self._retry_at and not self._trial)

    def sent(self) -> None:
        """A request is on its way; with the breaker half open it is the trial."""
        if self._retry_at is not None:
            self._trial = True

    def success(self) -> None:
        if self._retry_at is None:
            self._history = (self._history << 1) & _MASK
        elif self._trial:  # a late answer to an older request does not end the cool-down
            self.reset()

    def neutral(self) -> None:
        """The request told nothing about the server's health."""
        self._trial = False

    def failure(self, now: float) -> None:
        if self._retry_at is not None:
            if self._trial:  # nor does one prolong it
                self._cool_down = min(2 * self._cool_down, MAX_COOL_DOWN)
                self._retry_at = now + self._cool_down
            self._trial = False
            return
        self._history = (self._history << 1 | 1) & _MASK
        if self._history & _ROW == _ROW or self._history.bit_count() >= OPEN_AT:
            self._retry_at = now + self._cool_down

    def reset(self) -> None:
        """Begin anew: all is well, or the server is another process."""
        self._history, self._retry_at, self._cool_down, self._trial = 0, None, COOL_DOWN, False
