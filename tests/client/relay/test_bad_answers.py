"""Servers whose answers are nonsense, late or endless: the client gets a right answer, or an error."""

from __future__ import annotations

import time

import pytest

from tests.client.calls import text_of, tokens_of
from tests.client.conftest import MakeGateway
from tests.client.faults import OK_HEAD, nothing_leaks
from tests.client.stub import BUSY, Stub, stubs
from tests.serving import eventually


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff\xfegarbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        OK_HEAD + b'Content-Length: 500\r\n\r\n{"choices": [',
        OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK_HEAD + b"Content-Length: 5\r\n\r\n{oops",
        OK_HEAD + b"Content-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 X\r\nRetry-After: \xff\r\nContent-Length: 2\r\n\r\n{}",
    ],
    ids=[
        "nothing",
        "garbage",
        "half-head",
        "half-body",
        "bad-chunks",
        "no-json",
        "no-completion",
        "html",
        "redirect",
        "header",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_nonsense_from_a_server_is_asked_of_a_peer(
    make_gateway: MakeGateway, raw: bytes, stream: bool
) -> None:
    first, peer = Stub(raw=raw), Stub(others=BUSY)
    async with stubs(first, peer), make_gateway([first, peer]) as client, nothing_leaks(client):
        for _ in range(3):
            if stream:
                assert (await client.stream("x", 5)).endswith(b"data: [DONE]\n\n")
            else:
                answer = await client.complete("x", 5)
                assert answer["choices"][0]["text"] == text_of(tokens_of("x", 5))


@pytest.mark.parametrize(
    ("load", "tokens"),
    [
        (b"9" * 5000, b"-5"),
        (b"9" * 400, b"18446744073709551615"),
        (b"-5", b"1e300"),
        (b"nan", b"true"),
        (b"1e400", b"null"),
        (b"", b"[]"),
        ("٣".encode(), b'"7"'),
    ],
)
async def test_no_number_in_an_answer_breaks_the_gateway(
    make_gateway: MakeGateway, load: bytes, tokens: bytes
) -> None:
    body = b'{"choices": [], "usage": {"completion_tokens": %s}}' % tokens
    head = OK_HEAD + b"X-Server-Load: %s\r\nContent-Length: %d\r\n\r\n" % (load, len(body))
    server = Stub(raw=head + body)
    async with stubs(server), make_gateway([server]) as client:
        for _ in range(2):
            async with client.session.post("/completion/v2", json={"model": "m", "prompt": "x"}) as response:
                assert response.status == 200, await response.text()
        for path in ("/status", "/metrics", "/status/history"):
            async with client.session.get(path) as response:
                assert response.status == 200, await response.text()
        server.raw = None
        await client.complete("x", 5)
        assert client.gateway.metrics.tokens == 5


@pytest.mark.parametrize(
    ("said", "given"),
    [("nan", "1"), ("inf", "1"), ("1e12", "1"), ("1000000000000", "3600"), ("7", "7"), ("7.5", "8")],
)
async def test_a_server_s_retry_after_reaches_the_client_within_bounds(
    make_gateway: MakeGateway, said: str, given: str
) -> None:
    raw = f"HTTP/1.1 429 X\r\nContent-Type: application/json\r\nRetry-After: {said}\r\n"
    server = Stub(raw=raw.encode() + b"Content-Length: 2\r\n\r\n{}")
    async with stubs(server), make_gateway([server]) as client:
        status, headers, _ = await client.post("x")
        assert (status, headers.getall("retry-after")) == (429, [given])


SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
EVENT = b'data: {"choices": [{"index": 0, "text": "a", "finish_reason": null}]%s}\n\n'


@pytest.mark.parametrize(
    "comment",
    [
        b": tokens 9 5\n",
        b": tokens 0 99999999999\n",
        b": tokens 0 " + b"9" * 5000 + b"\n",
        b": tokens 0 1,,2\n",
        b": tokens -1 5\n",
        b": tokens 0 nan\n",
        b": tokens\n",
        b"",
    ],
)
@pytest.mark.parametrize("created", [b', "created": ' + b"9" * 5000])
async def test_a_stream_whose_checkpoints_say_nothing_is_not_continued_wrongly(
    make_gateway: MakeGateway, comment: bytes, created: bytes
) -> None:
    """It ends with an error event; no peer repeats what the client has, and none is harmed."""
    odd, peer = Stub(raw=SSE_HEAD + comment + EVENT % created), Stub(others=BUSY)
    async with stubs(odd, peer), make_gateway([odd, peer]) as client:
        stream = await client.stream("x", 5)
        assert stream.count(b'"text": "a"') == 1 and b"\n\nevent: error\ndata: {" in stream
        assert b"upstream_failed" in stream and not peer.calls
        await client.complete("x", 5)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hung_server_loses_its_requests_to_a_peer(make_gateway: MakeGateway, stream: bool) -> None:
    first, peer = Stub(), Stub(others=BUSY)
    async with stubs(first, peer), make_gateway([first, peer]) as client, nothing_leaks(client):
        first.hung = True
        start = time.monotonic()
        if stream:
            assert (await client.stream("x", 5)).endswith(b"data: [DONE]\n\n")
        else:
            assert (await client.complete("x", 5))["choices"][0]["text"] == text_of(tokens_of("x", 5))
        assert time.monotonic() - start < 5
        replica = client.gateway.registry.get("continuous_batching", first.url)
        assert replica is not None and replica.state == "down"
        first.hung = False
        await client.ready(2)


async def test_a_slow_answer_is_not_a_hung_server(make_gateway: MakeGateway) -> None:
    """A server that takes long but answers its heartbeats keeps its requests."""
    server = Stub(seconds_per_token=0.5)
    async with stubs(server), make_gateway([server]) as client:
        await client.complete("x", 4)
        assert len(server.calls) == 1 and client.gateway.metrics.retries == 0


async def test_an_answer_that_takes_too_long_is_504(make_gateway: MakeGateway) -> None:
    server = Stub(seconds_per_token=1)
    async with stubs(server), make_gateway([server], first_byte_timeout_seconds=0.5) as client:
        status, _, body = await client.post("x", 4)
        assert (status, body["error"]["code"]) == (504, "upstream_timeout")
        await eventually(lambda: server.live == 0)
