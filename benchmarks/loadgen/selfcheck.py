"""How many requests the load generator itself can drive from one core, against a stub server.

.venv/bin/python -m benchmarks.loadgen.selfcheck
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop

from benchmarks.loadgen.arrivals import parse_arrivals
from benchmarks.loadgen.endpoint import Endpoint
from benchmarks.loadgen.run import run
from benchmarks.loadgen.stub import TOKENS
from benchmarks.loadgen.traffic import BUILT_IN

REQUESTS = 10_000
CLIENTS = 64
REPEATS = 3


@contextmanager
def stub_server() -> Iterator[str]:
    """A stub in a process of its own; yields its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.loadgen.stub"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


async def measure(url: str, stream: bool) -> tuple[float, float]:
    """(requests a second, CPU microseconds a request) of the best of several runs."""
    requests = BUILT_IN["equal"].requests(REQUESTS, 0)
    endpoint = Endpoint("stub", url, "stub", "v2", stream)
    best = (0.0, float("inf"))
    for _ in range(REPEATS):
        cpu, start = time.process_time(), time.perf_counter()
        records = await run(endpoint, requests, parse_arrivals(f"closed:{CLIENTS}"))
        rate = REQUESTS / (time.perf_counter() - start)
        if any(record.error for record in records):
            raise RuntimeError(f"the stub failed: {next(record.error for record in records if record.error)}")
        best = max(best, (rate, (time.process_time() - cpu) / REQUESTS * 1e6))
    return best


def main() -> None:
    """Print the figures; this process keeps to one core and leaves the others to the stub."""
    with stub_server() as url:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:1])
        for stream in (False, True):
            rate, cpu = uvloop.run(measure(url, stream))
            what = f"streams of {TOKENS} events" if stream else "whole answers"
            print(f"{what}: {rate:,.0f} requests/s, {cpu:.0f} µs of CPU a request")


if __name__ == "__main__":
    main()
