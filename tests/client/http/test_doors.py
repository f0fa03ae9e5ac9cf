"""No way around the key, and no way for a few clients to take all the room."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import unquote

import pytest

from protocol import routes
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.faults import much, open_sockets
from tests.client.stub import Stub, stubs
from tests.raw_http import connected, response
from tests.serving import eventually

BODY = b'{"model": "m", "prompt": "x"}'
UNLOCKED = ["/", "/health", "/ready", "/openapi.json", "/docs"]
"""Not all of them."""


def port_of(client: GatewayClient) -> int:
    return int(client.url.rpartition(":")[2])


def head(method: str, target: str, *fields: str) -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: localhost", *fields, "\r\n"]).encode("latin-1")


def variants(path: str) -> list[str]:
    """Targets that some router might take for `path`."""
    first, rest = path[1], path[2:]
    return [
        path,
        *(path + end for end in ("%0A", "%0a", "%0D%0A", "%00", "%20", "%09", "%0b", "%c2%85", "%e2%80%a8")),
        *(
            path + end
            for end in ("/", "//", "/.", "/..", ";", ";a=b", "?a=b", "?", "#", "%3F", "%23", ".json", "%2F")
        ),
        *("/" + path, "/." + path, "/x/.." + path, "//x" + path, "/%2e" + path, "/%0A" + path),
        f"/%{ord(first):02x}{rest}",
        path.replace("/", "%2F").replace("%2F", "/", 1),
        path.replace("/", "//"),
        path.upper(),
        path.title(),
        f"http://localhost{path}",
        f"http://localhost/{path}",
        f"/\\{path[1:]}",
    ]


METHODS = ["POST", "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"]


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/completion/v2", "/v1/models", "/status", "/requests/a"]
)
async def test_no_spelling_of_a_path_gets_past_the_key(make_gateway: MakeGateway, path: str) -> None:
    server = Stub()
    async with stubs(server), make_gateway([server], api_keys=["key"]) as client:
        for target in variants(path):
            for method in METHODS if target == path else METHODS[:3]:
                async with connected(port_of(client)) as (reader, writer):
                    writer.write(head(method, target, f"Content-Length: {len(BODY)}") + BODY)
                    line = await asyncio.wait_for(reader.readline(), 20)
                refusals = (b"401", b"400") if unquote(target).isprintable() else (b"404",)
                assert line.split()[1] in refusals, (method, target, line)
        assert not server.calls


@pytest.mark.parametrize("path", ["/v1/completions", "/completion/v2"])
async def test_only_one_spelling_reaches_a_server(make_gateway: MakeGateway, path: str) -> None:
    """With the key, too: whatever does not decode to the path is a 404 in the shape of all errors."""
    server = Stub()
    async with stubs(server), make_gateway([server], api_keys=["key"]) as client:
        for target in variants(path):
            async with connected(port_of(client)) as (reader, writer):
                fields = ["Authorization: Bearer key", f"Content-Length: {len(BODY)}"]
                writer.write(head("POST", target, *fields) + BODY)
                status, _, body = await response(reader)
            same = unquote(re.split(r"[?#]", target.removeprefix("http://localhost"))[0]) == path
            assert (status == 200) == same, target
            assert same or (status == 404 and b'"error"' in body), (target, status)


async def test_every_route_that_is_not_meant_for_all_needs_the_key(make_gateway: MakeGateway) -> None:
    async with make_gateway(api_keys=["key"], event_token="token") as client:
        async with client.session.get("/openapi.json") as answer:
            documented = (await answer.json())["paths"]
        assert len(documented) > 10
        open_to_all = []
        for path, methods in documented.items():
            for method in methods:
                target = path.replace("{model}", "m").replace("{request_id}", "r")
                async with client.session.request(method, target) as answer:
                    if answer.status != 401:
                        open_to_all.append(path)
        assert set(open_to_all) <= {"/health", "/ready", "/metrics"}
        for path in UNLOCKED:
            async with client.session.get(path) as answer:
                assert answer.status == 200


async def test_no_spelling_of_an_event_gets_past_the_token(make_gateway: MakeGateway) -> None:
    """Where there are no keys, either."""
    server = Stub()
    event = b'{"url": "%s", "service": "continuous_batching", "model_id": "m"}' % b"http://127.0.0.1:9"
    async with stubs(server), make_gateway(event_token="token") as client:
        for target in variants(routes.EVENT_SERVER_STARTUP):
            async with connected(port_of(client)) as (reader, writer):
                fields = ["Content-Type: application/json", f"Content-Length: {len(event)}"]
                writer.write(head("POST", target, *fields) + event)
                status, _, _ = await response(reader)
            assert status in (400, 401, 404), (target, status)
        assert not list(client.gateway.registry)


async def test_there_are_no_websockets(make_gateway: MakeGateway) -> None:
    upgrade = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: eA==",
    ]
    async with make_gateway(api_keys=["key"]) as client:
        for path, status in [("/v1/models", 401), ("/health", 200)]:
            async with connected(port_of(client)) as (reader, writer):
                writer.write(head("GET", path, *upgrade))
                assert (await response(reader))[0] == status


# --- bodies


@pytest.mark.parametrize("route", [routes.EVENT_SERVER_STARTUP, routes.COMPLETION_V2, "/v1/models"])
async def test_credentials_are_checked_before_a_body_is_read(make_gateway: MakeGateway, route: str) -> None:
    async with make_gateway(api_keys=["key"], event_token="token") as client:
        for framing in ("Content-Length: 1000000", "Transfer-Encoding: chunked"):
            for expect in ([], ["Expect: 100-continue"]):
                async with connected(port_of(client)) as (reader, writer):
                    writer.write(head("POST", route, framing, *expect))
                    assert (await response(reader))[0] == 401  # at once, of the body not a byte was sent


@pytest.mark.parametrize(
    "route", [routes.EVENT_SERVER_STARTUP, routes.EVENT_SERVER_SHUTDOWN, "/health", "/nowhere"]
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_no_route_reads_a_body_without_end(
    make_gateway: MakeGateway, route: str, chunked: bool
) -> None:
    async with make_gateway() as client, connected(port_of(client)) as (reader, writer):
        if chunked:
            piece = b"10000\r\n" + b" " * 2**16 + b"\r\n"
            writer.write(head("POST", route, "Transfer-Encoding: chunked") + piece * 20)
        else:
            writer.write(head("POST", route, "Content-Length: 100000000000"))
        status, _, body = await response(reader)
        assert (status, b"body_too_large" in body) == (413, True)


async def test_a_body_that_drips_in_is_408(make_gateway: MakeGateway) -> None:
    """However regularly its bytes come."""
    server = Stub()
    async with stubs(server), make_gateway([server], body_timeout_seconds=0.5) as client:
        for route in (routes.COMPLETION_V2, routes.EVENT_SERVER_STARTUP):
            async with connected(port_of(client)) as (reader, writer):
                writer.write(head("POST", route, "Content-Length: 1000"))

                async def drip(writer: Any = writer) -> None:
                    while True:
                        writer.write(b" ")
                        await asyncio.sleep(0.05)

                dripping = asyncio.create_task(drip())
                assert (await response(reader))[0] == 408
                dripping.cancel()


async def test_a_slow_body_has_the_time_that_its_size_needs(make_gateway: MakeGateway) -> None:
    server = Stub()
    limits = {"body_timeout_seconds": 1, "body_min_bytes_per_second": 1000}
    async with stubs(server), make_gateway([server], **limits) as client:
        body = BODY + b" " * (3000 - len(BODY))
        async with connected(port_of(client)) as (reader, writer):
            writer.write(head("POST", routes.COMPLETION_V2, "Content-Length: 3000"))
            for start in range(0, 3000, 300):
                writer.write(body[start : start + 300])
                await asyncio.sleep(0.2)  # 1,500 bytes a second, for twice the time-out
            assert (await response(reader))[0] == 200


async def test_who_is_still_sending_takes_no_place(make_gateway: MakeGateway) -> None:
    server = Stub()
    async with (
        stubs(server),
        make_gateway([server], max_concurrent_requests=1) as client,
        AsyncExitStack() as stack,
    ):
        for _ in range(20):
            _, writer = await stack.enter_async_context(connected(port_of(client)))
            writer.write(head("POST", routes.COMPLETION_V2, "Content-Length: 1000") + b"{")
        await eventually(lambda: client.gateway.metrics.received[routes.COMPLETION_V2] == 20)
        await client.complete()
        server.seconds_per_token = 1
        first = asyncio.create_task(client.complete(tokens=3))
        await eventually(lambda: len(server.calls) == 2)
        status, headers, body = await client.post()
        assert (status, body["error"]["code"], "retry-after" in headers) == (429, "queue_full", True)
        await first


async def test_all_bodies_together_have_a_budget(make_gateway: MakeGateway) -> None:
    """Large ones beyond it are asked to come back; small ones are served all the same."""
    server = Stub(seconds_per_token=0.2)
    async with stubs(server), make_gateway([server], max_buffered_body_bytes=300_000) as client:
        first = asyncio.create_task(client.complete("x" * 200_000, tokens=10))
        await eventually(lambda: server.live == 1)  # read, and still held: another server may have to have it
        status, headers, body = await client.post("x" * 200_000)
        assert (status, body["error"]["code"], "retry-after" in headers) == (503, "bodies_full", True)
        await client.complete("x" * 50_000, tokens=1)
        await first
        await client.complete("x" * 200_000, tokens=1)
        assert client.gateway.bodies.held == 0


async def test_an_upload_that_takes_long_gives_way(make_gateway: MakeGateway) -> None:
    server = Stub()
    limits = {"max_buffered_body_bytes": 300_000, "body_timeout_seconds": 0.5}
    async with stubs(server), make_gateway([server], **limits) as client:  # noqa: SIM117  # needs its port
        async with connected(port_of(client)) as (reader, writer):
            writer.write(head("POST", routes.COMPLETION_V2, "Content-Length: 1000000") + b" " * 200_000)

            async def at_the_least_pace() -> None:
                while True:
                    writer.write(b" " * 1000)
                    await asyncio.sleep(0.1)

            sending = asyncio.create_task(at_the_least_pace())
            await asyncio.sleep(0.7)
            assert (await client.post("x" * 200_000))[0] == 503
            assert (await response(reader))[0] == 503
            await client.complete("x" * 200_000)
            sending.cancel()


async def test_the_socket_of_a_client_that_does_not_read_is_closed(make_gateway: MakeGateway) -> None:
    """Its server is freed, and the socket does not wait for the client to read the rest."""
    server = Stub(padding="x" * 50_000)
    async with stubs(server), make_gateway([server], client_timeout_seconds=0.5) as client:
        await client.complete()
        before = open_sockets()
        async with client.session.post("/completion/v2", json=much(2000)):
            await eventually(lambda: server.live == 1)
            await eventually(lambda: server.live == 0)
            # our own end stays, unread; the gateway's is gone, as is that to the server
            await eventually(lambda: open_sockets() <= before + 1)
