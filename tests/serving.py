"""A real HTTP server around an ASGI app, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn

from utils.http_server import Worker

HTTP: dict[str, Any] = Worker.CONFIG_KWARGS | {"loop": "auto"}
"""Arguments of uvicorn for the HTTP server that every service has."""


class Server(uvicorn.Server):
    """uvicorn's, which ends as soon as it is asked to and nothing is open.

    uvicorn polls for its end ten times a second and then sleeps for another tenth: over two thousand tests
    that adds up to minutes.
    """

    async def main_loop(self) -> None:
        ticks = 0
        while not await self.on_tick(ticks // 20):  # which counts in tenths of a second
            ticks += 1
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in [*self.server_state.connections]:
            connection.shutdown()
        with suppress(TimeoutError):
            await eventually(self._is_at_rest, 0.1)
        if self.force_exit:
            return
        if self._is_at_rest():
            await self.lifespan.shutdown()
        else:
            await super().shutdown(sockets)

    def _is_at_rest(self) -> bool:
        return not self.server_state.connections and not self.server_state.tasks


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve `app` on a free port; yields its URL once it accepts connections."""
    config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5, **HTTP)
    server = Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the test server did not start")
        time.sleep(0.005)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        if thread.is_alive():
            raise RuntimeError("the test server did not stop")


async def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Return once `condition` holds; TimeoutError where it does not within `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what is waited for lives in another thread
            await asyncio.sleep(0.005)
