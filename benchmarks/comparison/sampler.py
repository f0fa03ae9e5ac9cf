"""Looks at a server's ``/status`` while it works: how full its batch and its cache are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from protocol import routes

INTERVAL = 0.25


@dataclass(slots=True)
class Samples:
    """What was seen, against seconds after the start."""

    times: list[float] = field(default_factory=list)
    running: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    cache: list[float] = field(default_factory=list)
    """Share of the KV cache in use, 0 to 1."""
    first: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    """`ServerStatus.details` before and after."""

    def mean_running(self) -> float:
        """Mean number of requests that ran."""
        return sum(self.running) / len(self.running) if self.running else 0.0

    def wasted_share(self) -> float | None:
        """Share of computed tokens that belong to rows that were done; None where that is not told."""
        if "wasted_row_steps" not in self.last:
            return None
        wasted = self.last["wasted_row_steps"] - self.first["wasted_row_steps"]
        computed = self.last["row_steps"] - self.first["row_steps"]
        return float(wasted / computed) if computed else 0.0


@asynccontextmanager
async def sampling(url: str) -> AsyncIterator[Samples]:
    """Samples the server at `url` inside the context; endpoints without ``/status`` give none."""
    samples = Samples()
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(5)) as http:
        status = await _status(http)
        if status is None:
            yield samples
            return
        samples.first = status["details"]
        task = asyncio.create_task(_sample(http, samples))
        try:
            yield samples
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            samples.last = (await _status(http) or status)["details"]


async def _sample(http: aiohttp.ClientSession, samples: Samples) -> None:
    start = time.perf_counter()
    while True:
        status = await _status(http)
        if status is not None:
            load = status["load"]
            samples.times.append(time.perf_counter() - start)
            samples.running.append(load["running"])
            samples.waiting.append(load["waiting"])
            samples.cache.append(load["kv_cache_usage"])
        await asyncio.sleep(INTERVAL)


async def _status(http: aiohttp.ClientSession) -> dict[str, Any] | None:
    """What the server tells of itself, None where it does not in the way of this stack."""
    try:
        async with http.get(routes.STATUS) as response:
            status = await response.json(content_type=None) if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
    return status if isinstance(status, dict) and {"load", "details"} <= status.keys() else None
