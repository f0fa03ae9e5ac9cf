"""Where the time of a start goes: logged, and told in ``/status`` while the model loads and after."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

logger = logging.getLogger(__name__)

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("phase_listener", default=None)


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Tell the listener that a phase of the start begins, and log how long it took once it is through."""
    if (tell := _listener.get()) is not None:
        tell(name)
    begin = time.monotonic()
    yield
    logger.info("%s: %.1f s", name, time.monotonic() - begin)


@contextlib.contextmanager
def phases_told_to(listener: Callable[[str], None]) -> Iterator[None]:
    """Call `listener` with the name of each phase that begins in the block, in this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class StartClock:
    """Seconds of each phase of a start, by when the phases begin; each ends where the next one begins.

    Args:
        first: the phase under way.
        clock: monotonic seconds.
    """

    def __init__(self, first: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._phase: str | None = first
        self._begin = clock()
        self._seconds: dict[str, float] = {}

    def enter(self, name: str | None, now: float | None = None) -> None:
        """The phase `name` begins, or began at the time `now`; None: the start is over."""
        now = self._clock() if now is None else now
        if self._phase is not None:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._begin
        self._phase, self._begin = name, now

    def told(self) -> dict[str, Any]:
        """For ``/status``: the phase under way, if any, with the seconds so far, and those of all before."""
        seconds = dict(self._seconds)
        if self._phase is not None:
            seconds[self._phase] = seconds.get(self._phase, 0.0) + self._clock() - self._begin
        rounded = {name: round(value, 3) for name, value in seconds.items()}
        return {"phase": self._phase, "seconds": rounded, "total_seconds": round(sum(seconds.values()), 3)}
