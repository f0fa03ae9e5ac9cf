"""Latency and throughput of the last minutes, in slots, for the charts of the web page."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import BaseModel

SLOT_SECONDS = 2.0
SLOTS = 150

BOUNDS = tuple(0.001 * 1.25**i for i in range(56))
"""Upper bounds of the latency buckets in seconds: 1 ms to 215 s, 25 % apart."""


def buckets() -> list[int]:
    return [0] * (len(BOUNDS) + 1)


def quantile(counts: list[int], q: float) -> float | None:
    """The bound below which a share `q` of the values lies; None without values."""
    total = sum(counts)
    if not total:
        return None
    seen = 0
    for bound, count in zip(BOUNDS, counts, strict=False):
        seen += count
        if seen >= q * total:
            return bound
    return BOUNDS[-1]


@dataclass(slots=True)
class Slot:
    """What happened in `SLOT_SECONDS` from `start` on."""

    start: float
    requests: int = 0
    failed: int = 0
    client_errors: int = 0
    tokens: int = 0
    latency: list[int] = field(default_factory=buckets)
    first_event: list[int] = field(default_factory=buckets)


class Point(BaseModel):
    """One slot of the charts: rates per second, latencies in seconds, null where nothing ended."""

    age: float
    """Seconds before now."""
    requests_per_second: float
    failed_per_second: float
    """Faults of servers and of the gateway."""
    client_errors_per_second: float
    tokens_per_second: float
    latency_p50: float | None
    latency_p95: float | None
    first_event_p50: float | None
    first_event_p95: float | None
    answers: int
    """How many latencies there are in the slot."""
    streams: int
    """The same for first events."""


class History:
    """The last `SLOTS` slots.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slots: deque[Slot] = deque([Slot(clock())], maxlen=SLOTS)

    def slot(self) -> Slot:
        """The slot of this moment."""
        slot, now = self._slots[-1], self._clock()
        if now - slot.start < SLOT_SECONDS:
            return slot
        skipped = int((now - slot.start) / SLOT_SECONDS)
        for i in range(max(1, skipped - SLOTS + 1), skipped + 1):
            self._slots.append(Slot(slot.start + i * SLOT_SECONDS))
        return self._slots[-1]

    def finished(self, seconds: float, failed: bool, by_client: bool = False) -> None:
        """A request ended `seconds` after it came; `by_client`: it failed for what its client sent or did."""
        slot = self.slot()
        slot.requests += 1
        slot.failed += failed and not by_client
        slot.client_errors += failed and by_client
        if not failed:
            slot.latency[bisect_left(BOUNDS, seconds)] += 1

    def stream_begun(self, seconds: float) -> None:
        """The first event of a stream went out `seconds` after its request came."""
        self.slot().first_event[bisect_left(BOUNDS, seconds)] += 1

    def points(self) -> list[Point]:
        """The finished slots, oldest first."""
        newest = self.slot()
        return [
            Point(
                age=round(newest.start - slot.start, 3),
                requests_per_second=slot.requests / SLOT_SECONDS,
                failed_per_second=slot.failed / SLOT_SECONDS,
                client_errors_per_second=slot.client_errors / SLOT_SECONDS,
                tokens_per_second=slot.tokens / SLOT_SECONDS,
                latency_p50=quantile(slot.latency, 0.5),
                latency_p95=quantile(slot.latency, 0.95),
                first_event_p50=quantile(slot.first_event, 0.5),
                first_event_p95=quantile(slot.first_event, 0.95),
                answers=sum(slot.latency),
                streams=sum(slot.first_event),
            )
            for slot in list(self._slots)[:-1]
        ]
