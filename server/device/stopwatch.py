"""Times work on a device without waiting for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import torch


class Stopwatch:
    """Measures how long work takes; on CUDA, where work is queued, the time is known some steps later.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._begun = 0.0
        self._first: torch.cuda.Event | None = None
        self._under_way: deque[tuple[torch.cuda.Event, torch.cuda.Event, Callable[[float], None]]] = deque()

    def start(self) -> None:
        """Time what is queued from now on; report what has finished meanwhile."""
        if not self._on_cuda:
            self._begun = time.perf_counter()
            return
        while self._under_way and _is_over(self._under_way[0][1]):
            first, last, tell = self._under_way.popleft()
            tell(first.elapsed_time(last) / 1e3)
        self._first = _recorded()

    def stop(self, tell: Callable[[float], None]) -> None:
        """Call `tell` with the seconds from `start` to here, once they are known."""
        if self._first is None:
            tell(time.perf_counter() - self._begun)
        else:
            self._under_way.append((self._first, _recorded(), tell))


def _is_over(event: torch.cuda.Event) -> bool:
    return event.query()  # type: ignore[no-any-return, no-untyped-call]


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
