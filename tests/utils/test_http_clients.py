"""Clients of the HTTP server that do not read, or that take all the connections."""

from __future__ import annotations

import asyncio

import pytest

from tests.raw_http import connected, statuses
from tests.serving import eventually
from tests.utils.conftest import Served
from tests.utils.test_http_requests import GET, POST
from utils import http_server, http_transport
from utils.http_limits import HttpLimits


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_transport, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.5)


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_does_not_read_is_cut_off(served: Served) -> None:
    async with connected(served.port) as (_, writer):
        writer.write(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: served.app.ends == ["http.disconnect"] and served.open == 0)
        assert not served.server.server_state.tasks


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_reads_slowly_is_not(served: Served) -> None:
    async with connected(served.port) as (reader, writer):
        writer.write(b"GET /much HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        size = 0
        while data := await reader.read(2**19):
            size += len(data)
            await asyncio.sleep(0.02)
        assert size > 400 * 100_000


async def test_a_response_that_its_app_gave_up_does_not_wait_for_its_reader(served: Served) -> None:
    async with connected(served.port) as (_, writer):
        writer.write(b"GET /given-up HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: served.open == 1)
        await eventually(lambda: served.open == 0)


# --- connections


@pytest.mark.parametrize("limits", [HttpLimits(worker_connections=32)])
async def test_connections_that_wait_make_room(served: Served) -> None:
    async with connected(served.port) as (reader, writer):
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(200)]
        for other in idle[::2]:
            other[1].write(POST + b"Content-Length: 10\r\n\r\n1")  # begun, never ended
        assert await statuses(served.port, GET) == [200]
        assert served.open <= 32
        writer.write(b"")
        data = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 30)  # it was being answered
        assert data.count(b"x") == 400
        for _, other_writer in idle:
            other_writer.transport.abort()
