"""Chapter 13: the same stall, seen by a closed and by an open loop. A server in virtual time.

.venv/bin/python -m docs.tutorial.code.loops
"""

from __future__ import annotations

import heapq

import numpy as np

from docs.tutorial.code.common import table

SERVICE, SECONDS = 0.010, 60.0
STALL = 30.0, 35.0
"""From when to when the server does nothing."""


def served(start: float) -> float:
    """When a request is done whose turn comes at `start`."""
    end = start + SERVICE
    return STALL[1] + SERVICE if start < STALL[1] and end > STALL[0] else end


def open_loop(rate: float, seed: int = 0) -> list[float]:
    """Latencies of requests that arrive whatever the server does."""
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, int(rate * SECONDS)))
    free, latencies = 0.0, []
    for arrived in arrivals:
        free = served(max(free, arrived))
        latencies.append(free - arrived)
    return latencies


def closed_loop(clients: int, pause: float) -> list[float]:
    """Latencies of `clients` that each send their next request `pause` seconds after an answer."""
    sends = [i * pause / clients for i in range(clients)]
    free, latencies = 0.0, []
    while sends[0] < SECONDS:
        sent = heapq.heappop(sends)
        free = served(max(free, sent))
        latencies.append(free - sent)
        heapq.heappush(sends, free + pause)
    return latencies


def main(argv: list[str] | None = None) -> None:
    rows = []
    for name, latencies in (
        ("closed, 1 client", closed_loop(1, 0.010)),
        ("closed, 8 clients", closed_loop(8, 0.150)),
        ("open, 50 requests/s", open_loop(50)),
    ):
        values = np.array(latencies)
        p50, p99 = np.percentile(values, [50, 99])
        late = f"{np.mean(values > 1):.1%}"
        rows.append(
            [name, len(values), f"{p50 * 1e3:.0f}", f"{p99 * 1e3:.0f}", f"{max(values) * 1e3:.0f}", late]
        )
    table(["loop", "requests", "p50 ms", "p99 ms", "max ms", "above 1 s"], rows)


if __name__ == "__main__":
    main()
