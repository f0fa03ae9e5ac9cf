"""The HTTP server of every service around an app that keeps what it gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from tests.serving import HTTP, Server, eventually
from utils.http_limits import HttpLimits
from utils.http_server import HttpProtocol


class App:
    """Keeps what it gets, and answers ``ok``; on other paths with more than sockets hold (``/much``,
    ``/given-up``: but not to the end), slowly (``/stream``), or without a look at the body (``/at-once``)."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, Any], bytes]] = []
        self.ends: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while scope["path"] != "/at-once":
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ends.append("left")
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.seen.append((scope, body))
        if scope["path"] in ("/much", "/given-up", "/stream"):
            patience = 0.5 if scope["path"] == "/given-up" else None
            async with asyncio.timeout(patience):
                await self._stream(scope["path"] == "/stream", receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def _stream(self, slowly: bool, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            data = b"x" if slowly else b"x" * 100_000
            await send({"type": "http.response.body", "body": data, "more_body": True})
            await asyncio.sleep(0.01 if slowly else 0)
        await send({"type": "http.response.body", "body": b""})
        self.ends.append((await receive())["type"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Those of the only request."""
        ((scope, _),) = self.seen
        return dict(scope["headers"])


class Served:
    def __init__(self, app: App, server: uvicorn.Server) -> None:
        self.app = app
        self.server = server
        self.port: int = server.servers[0].sockets[0].getsockname()[1]

    @property
    def open(self) -> int:
        return len(self.server.server_state.connections)


@pytest.fixture
def limits() -> HttpLimits:
    return HttpLimits()


@pytest.fixture
async def served(limits: HttpLimits) -> AsyncIterator[Served]:
    app = App()
    http = HTTP | {"http": type("Limited", (HttpProtocol,), {"limits": limits})}
    server = Server(uvicorn.Config(app, port=0, lifespan="off", log_level="critical", **http))
    task = asyncio.create_task(server._serve())
    await eventually(lambda: server.started)
    yield Served(app, server)
    server.force_exit = server.should_exit = True
    await task
