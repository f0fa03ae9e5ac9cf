"""What the HTTP server of every service makes of ambiguous, endless and oversized requests."""

from __future__ import annotations

import asyncio

import pytest

from tests.raw_http import connected, response, statuses
from tests.serving import eventually
from tests.utils.conftest import Served

POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        # two lengths, or none that is sure
        (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab", 400),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nab", 400),
        (POST + b"Content-Length: 2, 2\r\n\r\nab", 400),
        (POST + b"Content-Length: +2\r\n\r\nab", 400),
        (POST + b"Content-Length: -2\r\n\r\nab", 400),
        (POST + b"Content-Length: 0x2\r\n\r\nab", 400),
        (POST + b"Content-Length: 99999999999999999999999\r\n\r\nab", 400),
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        # chunks
        (CHUNKED + b"2\nab\n0\n\n", 400),
        (CHUNKED + b"2;a\nab\r\n0\r\n\r\n", 400),
        (CHUNKED + b"-2\r\nab\r\n0\r\n\r\n", 400),
        (CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n", 400),
        (CHUNKED + b"2 \r\nab\r\n0\r\n\r\n", 400),
        (CHUNKED + b"2\r\nabXX\r\n0\r\n\r\n", 400),
        (CHUNKED + b"ffffffffffffffffff\r\nab\r\n0\r\n\r\n", 400),
        (CHUNKED + b"2\r\nab\r\n0\r\nContent-Length: 5\r\n\r\n", 400),
        (CHUNKED + b"2\r\nab\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        # lines
        (b"POST / HTTP/1.1\nHost: x\nContent-Length: 2\n\nab", 400),
        (POST + b"X-A: 1\nContent-Length: 2\r\n\r\nab", 400),
        (POST + b"Content-Length: 2\r\n\nab", 400),
        (POST + b"X-A: 1\rX-B: 2\r\nContent-Length: 2\r\n\r\nab", 400),
        (POST + b"X-A: 1\r\n 2\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\n X: y\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 400),
        (POST + b"X-A : 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (POST + b"XA\r\nContent-Length: 2\r\n\r\nab", 400),
        (POST + b": x\r\nContent-Length: 2\r\n\r\nab", 400),
        (POST + b"X-A: a\x00b\r\nContent-Length: 2\r\n\r\nab", 400),
        (POST + b"X\x00A: ab\r\nContent-Length: 2\r\n\r\nab", 400),
        (POST + b"X-A: a\x01b\r\nContent-Length: 2\r\n\r\nab", 400),
        # fields of which there is one
        (POST + b"Host: y\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", 400),
        (POST + b"Authorization: a\r\nAuthorization: b\r\nContent-Length: 2\r\n\r\nab", 400),
        (POST + b"Content-Type: a\r\ncontent-type: b\r\nContent-Length: 2\r\n\r\nab", 400),
        (POST + b"X-Gateway-Hops: 8\r\nx-gateway-hops: 0\r\nContent-Length: 2\r\n\r\nab", 400),
        (POST + b"X-Request-Id: a\r\nX-Request-Id: b\r\nContent-Length: 2\r\n\r\nab", 400),
        # request lines
        (b"GET /\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET health HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http://evil HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /a\tb HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        # sizes
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /?" + b"a" * 9000, 414),
        (POST + b"X-A: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (POST + b"X-A: " + b"a" * 200_000, 431),
        (POST + b"".join(b"X-%d: a\r\n" % i for i in range(100)) + b"\r\n", 431),
        (POST + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 8000) for i in range(10)) + b"\r\n", 431),
        (b"\r\n" * 50_000, 431),
    ],
)
async def test_a_bad_request_is_refused_once_and_the_connection_closed(
    served: Served, raw: bytes, status: int
) -> None:
    async with connected(served.port) as (reader, writer):
        writer.write(raw)
        found, headers, body = await response(reader)
        assert (found, headers["connection"]) == (status, "close")
        assert body.startswith(b'{"error":{"message":')
        assert await reader.read() == b""
    # a body that turns out to be bad may have begun to arrive; it must not be taken for a whole one
    assert not served.app.seen


async def test_trailers_are_no_headers(served: Served) -> None:
    chunks = b"2\r\nab\r\n0\r\nX-Gateway-Hops: 0\r\nAuthorization: b\r\nX-New: 1\r\nHost: y\r\n\r\n"
    head = POST + b"X-Gateway-Hops: 8\r\nAuthorization: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    # in one piece, and when the app has long begun
    assert await statuses(served.port, head + chunks) == [200]
    assert await statuses(served.port, head, chunks) == [200]
    for scope, body in served.app.seen:
        assert (body, scope["headers"]) == (
            b"ab",
            [
                (b"host", b"x"),
                (b"x-gateway-hops", b"8"),
                (b"authorization", b"a"),
                (b"transfer-encoding", b"chunked"),
            ],
        )


@pytest.mark.parametrize(
    "offer",
    [b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n"],
)
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_body_behind_an_offer_to_upgrade_is_a_body(
    served: Served, offer: bytes, framing: str
) -> None:
    """As Java's client sends it: neither lost, nor taken for the next request."""
    inner = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    head = POST + offer + b"Content-Length: %d\r\n\r\n" % len(inner)
    body = inner
    if framing == "chunks":
        head = POST + offer + b"Transfer-Encoding: chunked\r\n\r\n"
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner)
    assert await statuses(served.port, head + body + GET) == [200, 200]
    assert await statuses(served.port, head, body, GET) == [200, 200]
    assert [body for _, body in served.app.seen] == [inner, b""] * 2
    assert await statuses(served.port, GET[:-2] + offer + b"\r\n" + GET) == [200, 200]


async def test_the_host_of_an_absolute_target_counts(served: Served) -> None:
    raw = b"GET http://user:word@evil:80/a?b=http://c HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert await statuses(served.port, raw) == [200]
    ((scope, _),) = served.app.seen
    assert (scope["path"], scope["query_string"]) == ("/a", b"b=http://c")
    assert served.app.headers[b"host"] == b"evil:80"


async def test_whoever_sends_a_head_without_end_is_told_so(served: Served) -> None:
    """40 MB of one header field; the refusal is not lost under what is still on its way."""
    async with connected(served.port) as (reader, writer):

        async def send() -> None:
            writer.write(POST + b"X-A: ")
            for _ in range(400):
                writer.write(b"a" * 100_000)
                await writer.drain()

        sending = asyncio.create_task(send())
        assert (await response(reader))[0] == 431
        sending.cancel()
    await eventually(lambda: served.open == 0)


@pytest.mark.parametrize(
    "piece", [b"1;" + b"a" * 1000 + b"\r\nb\r\n", b"1\r\nb\r\n" * 500], ids=["extensions", "one byte each"]
)
async def test_chunks_are_not_mostly_overhead(served: Served, piece: bytes) -> None:
    assert await statuses(served.port, CHUNKED + piece * 500) == [400]
    assert not served.app.seen


async def test_trailers_without_end_are_refused(served: Served) -> None:
    assert await statuses(served.port, CHUNKED + b"0\r\n" + b"X-A: b\r\n" * 100_000) == [400]
    assert await statuses(served.port, CHUNKED + b"0\r\nX-A: " + b"b" * 1_000_000) == [400]


async def test_reasonable_heads_and_chunks_are_taken(served: Served) -> None:
    fields = b"".join(b"X-%d: %s\r\n" % (i, b"a" * 500) for i in range(90))
    large = POST + fields + b"Content-Length: 1000000\r\n\r\n" + b"b" * 1_000_000
    chunks = b"".join(b"%x;name=value\r\n%s\r\n" % (4000, b"c" * 4000) for _ in range(250)) + b"0\r\n\r\n"
    small = CHUNKED + b"1\r\nb\r\n" * 5000 + b"0\r\n\r\n"
    # also right after each other, wherever the pieces begin and end
    assert await statuses(served.port, large + CHUNKED + chunks + small + large) == [200] * 4
    assert [len(body) for _, body in served.app.seen] == [1_000_000, 1_000_000, 5000, 1_000_000]


async def test_few_requests_may_be_pipelined(served: Served) -> None:
    assert await statuses(served.port, GET * 20) == [200] * 20
    seen = len(served.app.seen)
    assert await statuses(served.port, GET * 1000) == []
    assert len(served.app.seen) <= seen + 1  # the first had begun


async def test_garbage_does_not_cut_into_a_response(served: Served) -> None:
    async with connected(served.port) as (reader, writer):
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"garbage\r\n\r\n")
        try:
            rest = await reader.read()
        except ConnectionError:
            rest = b""
        assert b"HTTP/1.1" not in rest
    await eventually(lambda: served.open == 0)


async def test_an_answer_is_not_mistaken_for_that_to_an_earlier_request(served: Served) -> None:
    """A bad request behind one that is still being answered ends the connection without a word."""
    assert await statuses(served.port, POST + b"Content-Length: 2\r\n\r\nab" + b"garbage\r\n\r\n") == []


async def test_an_answer_before_the_end_of_a_request_closes_the_connection(served: Served) -> None:
    """After it was read, whatever the client still sends meanwhile."""
    async with connected(served.port) as (reader, writer):
        writer.write(b"POST /at-once HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        status, headers, _ = await response(reader)
        assert (status, headers["connection"]) == (200, "close")

        async def send() -> None:
            while True:
                writer.write(b"a" * 100_000)
                await writer.drain()

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send(), 20)
    async with connected(served.port) as (reader, writer):
        writer.write(b"POST /at-once HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab")
        assert "connection" not in (await response(reader))[1]
