"""Pieces that go past the middlewares, on a real connection."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tests.raw_http import connected
from tests.serving import Server, eventually
from utils.http_pieces import PIECES
from utils.http_server import HttpProtocol

taken: list[bool] = []
paused = asyncio.Event()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Streams three pieces, or to a client of ``/slow`` so much that it cannot keep up."""
    taken.clear()
    pieces = scope["extensions"][PIECES]
    taken.append(pieces.write(b"too soon"))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    many = 10_000 if scope["path"] == "/slow" else 3
    for number in range(many):
        piece = b"piece %d\n" % number * (1 if many == 3 else 4096)
        taken.append(pieces.write(piece))
        if not taken[-1]:
            paused.set()
            if many > 3:
                break
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"end", "more_body": False})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    config = uvicorn.Config(app, port=0, http=HttpProtocol, lifespan="off", log_level="warning")
    server = Server(config)
    task = asyncio.create_task(server._serve())
    await eventually(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


async def test_pieces_are_chunks_of_the_body(port: int) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(2):  # the connection is still in order
            async with session.get(f"http://127.0.0.1:{port}/") as response:
                assert await response.read() == b"piece 0\npiece 1\npiece 2\nend"
            assert taken == [False, True, True, True], "the first came before the head"


async def test_requests_and_connections_leave_nothing_to_the_garbage_collector(port: int) -> None:
    def there(kind: type) -> int:
        return sum(issubclass(type(found), kind) for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        requests, connections = there(RequestResponseCycle), there(HttpProtocol)
        async with aiohttp.ClientSession() as session:
            for _ in range(10):
                async with session.get(f"http://127.0.0.1:{port}/") as response:
                    await response.read()
            assert there(RequestResponseCycle) - requests <= 1, "a connection keeps its last request"
        async with connected(port) as (reader, writer):
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            await reader.read()
        await eventually(lambda: there(HttpProtocol) <= connections)
        assert there(RequestResponseCycle) <= requests
    finally:
        gc.enable()


async def test_an_answer_without_chunks_goes_through_send(port: int) -> None:
    async with connected(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(30):
            answer = await reader.read()
    assert answer.endswith(b"\r\n\r\npiece 0\npiece 1\npiece 2\nend")
    assert taken == [False] * 4


async def test_a_client_that_does_not_read_makes_the_writer_wait(port: int) -> None:
    paused.clear()
    async with connected(port) as (_, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(10):
            await paused.wait()
    assert taken[-1] is False and len(taken) < 10_000
