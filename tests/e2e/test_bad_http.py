"""Requests that are no sound HTTP, sent to all three services under gunicorn."""

from __future__ import annotations

import http.client
import json

import pytest

from tests.e2e.stack import MODEL, Stack, call
from tests.raw_http import connected, response

SERVICES = {"gateway": "/completion/v2", "cb_server": "/completion/v2", "sb_server": "/completion/v1"}
BODY = json.dumps({"model": MODEL, "prompt": "1", "generation_config": {"max_new_tokens": 1}}).encode()


def port_of(stack: Stack, service: str) -> int:
    url: str = getattr(stack, service)
    return int(url.rpartition(":")[2])


@pytest.mark.parametrize("service", SERVICES)
async def test_trailers_are_no_headers(stack: Stack, service: str) -> None:
    head = f"POST {SERVICES[service]} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: mine\r\n"
    head += "X-Gateway-Hops: 0\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailers = b"0\r\nX-Request-Id: theirs\r\nX-Gateway-Hops: 99\r\n\r\n"
    async with connected(port_of(stack, service)) as (reader, writer):
        writer.write(head.encode() + b"%x\r\n%s\r\n" % (len(BODY), BODY) + trailers)
        status, headers, _ = await response(reader)
    assert (status, headers["x-request-id"]) == (200, "mine")


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nHost: y\r\n\r\n", 400),
        (
            "POST /health HTTP/1.1\r\nHost: localhost\r\n"
            "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        ("GET /" + "a" * 9000 + " HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\n" + "A: b\r\n" * 100 + "\r\n", 431),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + 40 * 2**20 * "a", 431),
        ("GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
    ],
    ids=["two hosts", "two lengths", "target", "fields", "40 MB", "version"],
)
async def test_a_bad_head_is_refused(stack: Stack, service: str, head: str, status: int) -> None:
    async with connected(port_of(stack, service)) as (reader, writer):
        writer.write(head.encode())
        found, headers, body = await response(reader)
    assert (found, headers["connection"]) == (status, "close")
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert call(getattr(stack, service), "/health").status == 200


@pytest.mark.parametrize("service", SERVICES)
def test_an_offer_to_upgrade_does_not_cost_the_body(stack: Stack, service: str) -> None:
    """Java's client offers HTTP/2 with every first request."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(stack, service), timeout=60)
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
    for _ in range(2):
        connection.request("POST", SERVICES[service], BODY, headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
    connection.close()


@pytest.mark.parametrize("service", SERVICES)
async def test_a_body_beyond_the_limit_is_refused_before_it_comes(stack: Stack, service: str) -> None:
    async with connected(port_of(stack, service)) as (reader, writer):
        head = f"POST {SERVICES[service]} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000000\r\n\r\n"
        writer.write(head.encode())
        assert (await response(reader))[0] == 413
