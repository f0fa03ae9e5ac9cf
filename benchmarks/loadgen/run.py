"""Sends the requests of a traffic as its arrivals say, and records what happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import aiohttp

from benchmarks.loadgen.arrivals import Arrivals
from benchmarks.loadgen.endpoint import Endpoint, Record, send
from benchmarks.loadgen.traffic import Request

Done = Callable[[Record], None]


@asynccontextmanager
async def session(timeout: float) -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a limit on connections; a request may take `timeout` seconds."""
    connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300)
    limits = aiohttp.ClientTimeout(total=timeout)
    async with aiohttp.ClientSession(connector=connector, timeout=limits, auto_decompress=False) as http:
        yield http


async def run(
    endpoint: Endpoint,
    requests: Sequence[Request],
    arrivals: Arrivals,
    *,
    seed: int = 0,
    timeout: float = 600.0,
    on_done: Done = lambda record: None,
) -> list[Record]:
    """Send all requests and wait for all answers.

    Args:
        endpoint: where they go.
        requests: in the order in which they are sent.
        arrivals: when they are sent.
        seed: of the arrivals' random numbers.
        timeout: seconds after which a request counts as failed.
        on_done: called with each record when its request is answered or has failed.

    Returns:
        A record for each request, in their order.
    """
    bodies = [endpoint.body(request) for request in requests]  # made before the clock runs
    async with session(timeout) as http:
        if arrivals.clients is not None:
            return await _closed(http, endpoint, bodies, arrivals.clients, on_done)
        due = arrivals.due(list(requests), seed)
        return await _open(http, endpoint, bodies, due, on_done)


async def _closed(
    http: aiohttp.ClientSession, endpoint: Endpoint, bodies: list[bytes], clients: int, on_done: Done
) -> list[Record]:
    records: list[Record] = []
    waiting = iter(bodies)
    origin = time.perf_counter()

    async def client() -> None:
        for body in waiting:  # shared: each client takes the next one
            record = Record(len(records), due=time.perf_counter() - origin)
            records.append(record)
            await send(http, endpoint, body, record, origin)
            on_done(record)

    await asyncio.gather(*(client() for _ in range(clients)))
    return records


async def _open(
    http: aiohttp.ClientSession, endpoint: Endpoint, bodies: list[bytes], due: list[float], on_done: Done
) -> list[Record]:
    records = [Record(index, at) for index, at in enumerate(due)]
    origin = time.perf_counter()

    async def one(record: Record, body: bytes) -> None:
        await send(http, endpoint, body, record, origin)
        on_done(record)

    tasks = []
    for record, body in zip(records, bodies, strict=True):
        wait = origin + record.due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(record, body)))
    await asyncio.gather(*tasks)
    return records
