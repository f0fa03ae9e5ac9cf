"""How late the load generator itself is: a program that is starved of its processor measures itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import numpy as np

from benchmarks.loadgen.endpoint import Record

TICK_SECONDS = 0.005


@asynccontextmanager
async def timer_lag() -> AsyncIterator[list[float]]:
    """Seconds by which short timers fire late inside the block, on the event loop that reads the answers."""
    late: list[float] = []
    task = asyncio.create_task(_tick(late))
    try:
        yield late
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _tick(late: list[float]) -> None:
    while True:
        due = time.perf_counter() + TICK_SECONDS
        await asyncio.sleep(TICK_SECONDS)
        late.append(max(time.perf_counter() - due, 0.0))


def client_lag(records: Sequence[Record], late: Sequence[float]) -> float:
    """The load generator's lag in a run, 99th percentile in seconds.

    The greater of two: how late requests were sent, which a closed loop does not show, and how late timers
    fired, for so late the end of an answer may have been noticed.
    """
    sent = [record.sent - record.due for record in records]
    return float(max(np.percentile(values, 99) if values else 0.0 for values in (sent, list(late))))
