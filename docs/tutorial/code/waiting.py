"""Chapter 2: what the packaging interval buys and costs. The server's own batcher, in virtual time.

.venv/bin/python -m docs.tutorial.code.waiting
"""

from __future__ import annotations

import argparse
import random

from docs.tutorial.code.common import table
from server.static_batching.batcher import Batcher, QueuedRequest

STEP_SECONDS = 0.02
"""A step of any package: reading the weights takes as long for 16 rows as for one."""


def simulate(rate: float, interval: float, size: int, requests: int = 4000) -> tuple[float, float, float]:
    """(mean package, mean wait for the start, mean latency) at `rate` requests a second."""
    dice = random.Random(0)
    batcher: Batcher[int] = Batcher(size, interval)
    now, free_at, arrivals = 0.0, 0.0, []
    for _ in range(requests):
        now += dice.expovariate(rate)
        arrivals.append((now, min(256, 1 + int(dice.expovariate(1 / 64)))))
    packages, waits, latencies = 0, 0.0, 0.0
    coming = iter([*arrivals, (float("inf"), 0)])
    arrived, length = next(coming)
    while arrived < float("inf") or len(batcher):
        ready = batcher.ready_at()
        start = float("inf") if ready is None else max(ready, free_at)
        if arrived <= start:
            batcher.add(QueuedRequest("same options", 1, 16, arrived, length))
            if batcher.ready_at() == float("-inf"):
                free_at = max(free_at, arrived)
            arrived, length = next(coming)
            continue
        package = batcher.take(start)
        free_at = start + STEP_SECONDS * max(queued.item for queued in package)
        packages += 1
        waits += sum(start - queued.arrived for queued in package)
        latencies += sum(free_at - queued.arrived for queued in package)
    return requests / packages, waits / requests, latencies / requests


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rates", nargs="+", type=float, default=[0.5, 2.0, 4.0])
    args = parser.parse_args(argv)
    rows = []
    for rate in args.rates:
        for interval in (0.0, 0.5, 2.0, 8.0):
            package, wait, latency = simulate(rate, interval, size=16)
            rows.append(
                [f"{rate:g}/s, interval {interval:g} s", f"{package:.1f}", f"{wait:.2f}", f"{latency:.2f}"]
            )
    table(["arrivals", "mean package", "wait s", "latency s"], rows)


if __name__ == "__main__":
    main()
