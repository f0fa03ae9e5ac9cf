"""What tests of misbehaviour share: heads of answers by hand, and what a process holds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tests.client.conftest import GatewayClient
from tests.serving import eventually

OK_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@asynccontextmanager
async def nothing_leaks(client: GatewayClient, concurrency: int = 1) -> AsyncIterator[None]:
    """After the block no request is held, and the process has the tasks and sockets it had before.

    Idle connections to live servers may stay in the pool, as many as there were requests at once.
    """
    await asyncio.sleep(0.05)
    tasks, sockets = len(asyncio.all_tasks()), open_sockets()
    yield
    await client.session.connector.close()  # type: ignore[union-attr]
    await eventually(lambda: not client.leaks())
    # a pooled connection has two ends, and a task at the stub's
    pooled = 2 * (concurrency + 1) * len(list(client.gateway.registry))
    await eventually(lambda: open_sockets() <= sockets + pooled)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks + pooled)


def open_sockets() -> int:
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.append(os.readlink(entry))
    return sum(link.startswith("socket:") for link in links)


def memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def much(tokens: int) -> dict[str, Any]:
    """A request for a stream of `tokens` events."""
    return {"model": "m", "prompt": "x", "stream": True, "generation_config": {"max_new_tokens": tokens}}
