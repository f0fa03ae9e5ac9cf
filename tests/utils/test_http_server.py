"""Clients that never finish a request are not waited for."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn

from tests.serving import Server, eventually
from utils import http_server
from utils.http_server import HttpProtocol, JoiningTransport, allow_open_files

left: list[str] = []


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the whole body, waits a little, answers; waits for its client to leave on another path."""
    while (await receive())["more_body"]:
        pass
    if scope["path"] == "/wait":
        left.append((await receive())["type"])
        return
    await asyncio.sleep(0.4)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.3)
    config = uvicorn.Config(app, port=0, http=HttpProtocol, lifespan="off", log_level="warning")
    server = Server(config)
    task = asyncio.create_task(server._serve())
    await eventually(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


@pytest.mark.parametrize("begun", [b"", b"GET / HT", HEAD[:-2]])
async def test_a_head_that_does_not_come_closes_the_connection(port: int, begun: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(begun)
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()


async def test_dripping_does_not_help(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def drip() -> None:
        for byte in b"GET / HTTP/1.1\r\nX: " + b"a" * 1000:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    async with asyncio.timeout(20):
        with suppress(ConnectionResetError):  # a byte came after it was closed
            assert await reader.read() == b""
    dripping.cancel()
    writer.close()


async def test_requests_may_take_longer_than_their_heads(port: int) -> None:
    """A slow body, a slow answer, and the next request on the same connection after a pause."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(HEAD + b"ab")
        await asyncio.sleep(0.5)
        writer.write(b"cd")
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200") and await reader.readexactly(2) == b"ok"
        await asyncio.sleep(0.5)  # idle between requests: that is the keep-alive's time
    writer.write(HEAD[:10])
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()


async def test_a_client_that_leaves_takes_all_its_pipelined_requests_along(port: int) -> None:
    left.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(3 * (b"POST /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"))
    await asyncio.sleep(0.1)
    writer.close()
    await eventually(lambda: left == ["http.disconnect"])  # the first; the others had not begun


class Transport:
    """Notes each write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0


async def test_a_head_goes_out_with_what_follows_at_once() -> None:
    inner: Any = Transport()
    transport = JoiningTransport(inner, asyncio.get_running_loop())
    transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
    transport.write(b"body")
    transport.write(b"more")
    assert inner.writes == [b"HTTP/1.1 200 OK\r\n\r\nbody", b"more"]
    assert not transport.is_closing()


@pytest.mark.parametrize("closing", [False, True])
async def test_a_head_alone_is_not_held_back(closing: bool) -> None:
    inner: Any = Transport()
    transport = JoiningTransport(inner, asyncio.get_running_loop())
    transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    if closing:
        transport.close()
    else:
        await asyncio.sleep(0)
    assert inner.writes == [b"HTTP/1.1 204 No Content\r\n\r\n"] and inner.closed is closing
    await asyncio.sleep(0)
    assert len(inner.writes) == 1


def test_the_limit_of_open_files_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
