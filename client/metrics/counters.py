"""The gateway's counters: plain numbers, exported to Prometheus by `exposition`."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable

from client.health.replica import Replica
from client.metrics.history import History
from client.upstream.classify import Outcome

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
"""Upper bounds of the latency histograms in seconds."""


class Histogram:
    """Counts of values by bucket."""

    __slots__ = ("_counts", "_total")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(BOUNDS, value)] += 1
        self._total += value

    def export(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative (bound, count) pairs and the sum, as Prometheus has them."""
        seen, pairs = 0, []
        for bound, count in zip([*map(str, BOUNDS), "+Inf"], self._counts, strict=True):
            seen += count
            pairs.append((bound, float(seen)))
        return pairs, self._total


class Metrics:
    """All counters of one gateway.

    `received` is counted before anything is done with a request, so that received − finished −
    in flight shows any that were lost.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.history = History(clock)
        self.received: defaultdict[str, int] = defaultdict(int)
        self.finished: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.latency: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.first_event = Histogram()
        self.retries = 0
        self.resumes = 0
        self.tokens = 0
        self.outcomes: defaultdict[tuple[str, str], int] = defaultdict(int)

    def finish(self, route: str, status: int, seconds: float, failed: bool) -> None:
        """A request ended, with whatever result; `status` is 499 where its client left."""
        self.finished[route, status] += 1
        self.latency[route].observe(seconds)
        self.history.finished(seconds, failed, by_client=400 <= status < 500)

    def stream_begun(self, seconds: float) -> None:
        """The first event of a stream went out `seconds` after its request came."""
        self.first_event.observe(seconds)
        self.history.stream_begun(seconds)

    def attempt(self, replica: Replica, outcome: Outcome) -> None:
        self.outcomes[replica.url, outcome] += 1

    def generated(self, tokens: int) -> None:
        self.tokens += tokens
        self.history.slot().tokens += tokens
