"""Limits on the bodies that a server reads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from server.api.app import create_app
from server.api.config import HttpConfig
from tests.api.fake import FakeService
from tests.raw_http import connected, response
from tests.serving import serving

PATHS = ["/completion/v2", "/v1/completions", "/v1/chat/completions", "/health", "/nowhere"]


@pytest.fixture
def port(service: FakeService) -> Iterator[int]:
    limits = HttpConfig(max_body_bytes=300_000, max_buffered_body_bytes=300_000, body_timeout_seconds=0.5)
    with serving(create_app(service, http=limits)) as url:
        yield int(url.rpartition(":")[2])


def head(path: str, field: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{field}\r\n\r\n".encode()


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_that_drips_in_is_408(port: int, path: str) -> None:
    async with connected(port) as (reader, writer):
        writer.write(head(path, "Content-Length: 1000"))

        async def drip() -> None:
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        status, headers, body = await response(reader)
        assert (status, headers["retry-after"], b"queue_timeout" in body) == (408, "1", True)
        dripping.cancel()


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_without_end_is_413(port: int, path: str) -> None:
    async with connected(port) as (reader, writer):
        writer.write(head(path, "Transfer-Encoding: chunked") + (b"10000\r\n" + b" " * 2**16 + b"\r\n") * 10)
        assert (await response(reader))[0] == 413


async def test_all_bodies_together_have_a_budget(port: int) -> None:
    async with connected(port) as (_, writer), connected(port) as (reader, other):
        writer.write(head("/completion/v2", "Content-Length: 250000") + b" " * 200_000)
        await asyncio.sleep(0.1)
        other.write(head("/completion/v2", "Content-Length: 200000") + b" " * 200_000)
        status, headers, body = await response(reader)
        assert (status, headers["retry-after"], b"bodies_full" in body) == (503, "1", True)
    async with connected(port) as (reader, writer):
        writer.write(head("/completion/v2", "Content-Length: 10") + b" " * 10)
        assert (await response(reader))[0] == 400  # it is read, and is no JSON


@pytest.mark.parametrize(("values", "expected"), [(b"1," * 99_000, 413), (b'"' + b"," * 99_000 + b'",', 404)])
async def test_a_body_of_too_many_values_is_not_read(
    service: FakeService, values: bytes, expected: int
) -> None:
    """Those in strings are text, which is read at once: such a body gets as far as its model's name."""
    with serving(create_app(service, http=HttpConfig(max_body_values=50_000))) as url:
        async with connected(int(url.rpartition(":")[2])) as (reader, writer):
            body = b'{"model": "other", "prompt": [' + values + b'"x"]}'
            if expected == 404:
                body = body.replace(b"[", b"").replace(b"]", b"").replace(b',"x"', b"")
            writer.write(head("/v1/completions", f"Content-Length: {len(body)}") + body)
            status, _, answer = await response(reader)
            assert status == expected and (b"too_many_values" in answer) == (expected == 413)


async def test_a_path_has_one_spelling(port: int) -> None:
    for end in ("%0A", "/", "%00", ";", "%20"):
        async with connected(port) as (reader, writer):
            writer.write(head("/completion/v2" + end, "Content-Length: 2") + b"{}")
            assert (await response(reader))[0] == 404, end
