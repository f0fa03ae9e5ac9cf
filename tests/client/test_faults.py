"""Hostile servers and clients: the gateway stays responsive and lets go of everything it held."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from yarl import URL

from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.stub import Stub, stubs, text_of, tokens_of
from tests.serving import eventually

BUSY = 20
OK_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@asynccontextmanager
async def nothing_leaks(client: GatewayClient, concurrency: int = 1) -> AsyncIterator[None]:
    """After the block no request is held, and the process has the tasks and sockets it had before.

    Idle connections to live servers may stay in the pool, as many as there were requests at once.
    """
    await asyncio.sleep(0.05)
    tasks, sockets = len(asyncio.all_tasks()), open_sockets()
    yield
    await client.session.connector.close()  # type: ignore[union-attr]
    await eventually(lambda: not client.leaks())
    # a pooled connection has two ends, and a task at the stub's
    pooled = 2 * (concurrency + 1) * len(list(client.gateway.registry))
    await eventually(lambda: open_sockets() <= sockets + pooled, 10)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks + pooled, 10)


def open_sockets() -> int:
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.append(os.readlink(entry))
    return sum(link.startswith("socket:") for link in links)


def memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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


async def test_nonsense_in_place_of_a_heartbeat_takes_a_server_out(make_gateway: MakeGateway) -> None:
    first, peer = Stub(raw_status=OK_HEAD + b"Content-Length: 4\r\n\r\nnull"), Stub()
    async with stubs(first, peer), make_gateway() as client:
        registry = client.gateway.registry
        registry.configure([("continuous_batching", s.url) for s in (first, peer)])
        await client.ready(1)
        replica = registry.get("continuous_batching", first.url)
        assert replica is not None
        await eventually(lambda: replica.state == "down")
        assert "something else" in replica.reason


async def test_a_server_of_the_other_kind_is_not_used(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub(kind="static_batching")), make_gateway() as client:
        replica = client.gateway.registry.join("continuous_batching", server.url, "event")
        await eventually(lambda: replica.state == "down")
        assert replica.reason == "is a static_batching server"


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


async def test_a_server_with_another_model_than_before(make_gateway: MakeGateway) -> None:
    first, peer = Stub(), Stub(others=BUSY)
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        first.model = "other"
        assert (await client.complete("x", 5))["choices"][0]["text"] == text_of(tokens_of("x", 5))
        await eventually(lambda: client.gateway.registry.models(["continuous_batching"]) == ["m", "other"])
        await client.complete("x", 5, model="other")
        peer.model = "other"
        await eventually(lambda: bool(peer.calls))
        status, _, body = await client.post("x", 5)
        assert (status, body["error"]["code"]) == (404, "model_not_found")


async def test_a_name_that_does_not_resolve(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub()):
        urls = ["http://nowhere.invalid:8001", server.url]
        async with make_gateway(continuous_batching_server_urls=urls) as client:
            await client.ready(1)
            await client.complete()
            lost = client.gateway.registry.get("continuous_batching", urls[0])
            assert lost is not None
            await eventually(lambda: lost.state == "down")


async def test_a_client_that_leaves_is_noticed_upstream(make_gateway: MakeGateway) -> None:
    server = Stub(seconds_per_token=0.05)
    async with stubs(server), make_gateway([server]) as client, nothing_leaks(client):
        for stream in (False, True):
            request = asyncio.create_task(client.post("x", 1000, stream=stream))
            await eventually(lambda: server.live == 1)
            request.cancel()
            await eventually(lambda: server.live == 0, 1.0)
        await eventually(lambda: client.gateway.metrics.finished["/completion/v2", 499] == 2)


@pytest.mark.parametrize("name", ["mine", "a/b", "/", "a//b?c#d%2f", '!"~', "x" * 128])
async def test_a_request_can_be_cancelled_by_its_id(make_gateway: MakeGateway, name: str) -> None:
    server = Stub(seconds_per_token=0.05)
    async with stubs(server), make_gateway([server]) as client:
        client.session.headers["x-request-id"] = name
        path = URL("/requests/" + quote(name, safe=""), encoded=True)
        request = asyncio.create_task(client.post("x", 1000))
        await eventually(lambda: server.live == 1)
        async with client.session.delete(path) as response:
            assert response.status == 204
        status, headers, _ = await request
        assert (status, headers["x-request-id"], headers["x-should-retry"]) == (409, name, "false")
        await eventually(lambda: server.live == 0)
        assert server.calls[0].headers["x-request-id"] == name
        async with client.session.delete(path) as response:
            assert response.status == 404


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 129])
async def test_an_id_that_cannot_be_one_is_refused(make_gateway: MakeGateway, name: str) -> None:
    async with stubs(server := Stub()), make_gateway([server]) as client:
        client.session.headers["x-request-id"] = name
        status, headers, body = await client.post()
        assert (status, headers["x-request-id"] != name) == (400, True)
        assert body["error"]["message"].startswith("x-request-id must be ")
        assert not server.calls


async def test_all_requests_of_an_id_are_cancelled(make_gateway: MakeGateway) -> None:
    server = Stub(seconds_per_token=0.05)
    async with stubs(server), make_gateway([server]) as client:
        other = asyncio.create_task(client.post("x", 20))
        await eventually(lambda: server.live == 1)
        client.session.headers["x-request-id"] = "mine"
        requests = [asyncio.create_task(client.post("x", 1000)) for _ in range(3)]
        await eventually(lambda: server.live == 4)
        async with client.session.delete("/requests/mine") as response:
            assert response.status == 204
        assert [(await request)[0] for request in requests] == [409] * 3
        async with client.session.delete("/requests/mine") as response:
            assert response.status == 404
        assert (await other)[0] == 200


def much(tokens: int) -> dict[str, Any]:
    """A request for a stream of `tokens` events."""
    return {"model": "m", "prompt": "x", "stream": True, "generation_config": {"max_new_tokens": tokens}}


async def test_a_slow_reader_slows_the_server_down(make_gateway: MakeGateway) -> None:
    """Backpressure: what the client does not read, the gateway does not hoard."""
    server = Stub(padding="x" * 50_000)
    async with stubs(server), make_gateway([server]) as client:
        async with client.session.post("/completion/v2", json=much(2000)) as response:
            replica = next(iter(client.gateway.registry))
            await asyncio.sleep(0.5)
            before, left = memory(), replica.load.tokens
            await asyncio.sleep(0.5)
            assert memory() - before < 5e6
            assert replica.load.tokens == left > 1000  # it stands still, far from done
            assert server.live == 1
            await response.content.readany()
        await eventually(lambda: server.live == 0)


async def test_a_client_that_stops_reading_is_dropped(make_gateway: MakeGateway) -> None:
    server = Stub(padding="x" * 50_000)
    async with (
        stubs(server),
        make_gateway([server], client_timeout_seconds=0.5) as client,
        nothing_leaks(client),
        client.session.post("/completion/v2", json=much(2000)),
    ):
        await eventually(lambda: server.live == 0)
        await eventually(lambda: client.gateway.metrics.finished["/completion/v2", 499] == 1)


async def test_a_body_that_does_not_arrive_is_408(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub()), make_gateway([server], client_timeout_seconds=0.3) as client:
        port = int(client.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /completion/v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in await reader.readline()
        writer.close()


async def test_bodies_above_the_limit_are_413(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub()), make_gateway([server], max_body_bytes=1000) as client:
        status, _, body = await client.post("x" * 1000)
        assert (status, body["error"]["code"]) == (413, "body_too_large")

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b" " * 100

        async with client.session.post("/completion/v2", data=chunks()) as response:
            assert response.status == 413
        await client.complete("x" * 800)


async def test_many_large_bodies_and_idle_and_slow_connections(
    make_gateway: MakeGateway,
) -> None:
    """1,000 idle connections, 50 that drip a head for ever, and bodies of 10 MB pass by each other."""
    server = Stub()
    async with stubs(server), make_gateway([server]) as client, nothing_leaks(client, 5):
        port = int(client.url.rpartition(":")[2])
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(1000)]
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]

        async def drip() -> None:
            for byte in b"POST /completion/v2 HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 1000:
                for _, writer in slow:
                    with suppress(ConnectionError):
                        writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        large = [asyncio.create_task(client.complete("y" * 10_000_000, 5)) for _ in range(5)]
        for answer in large:
            async with client.session.get("/health") as response:
                assert response.status == 200
            assert (await answer)["choices"]
        dripping.cancel()
        for _, writer in idle + slow:
            writer.close()
        assert len(server.calls) == 5


async def test_malformed_requests(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub()), make_gateway([server]) as client:
        for body, status, code in [
            (b"{", 400, "invalid_json"),
            (b"", 400, "invalid_json"),
            (b"[]", 400, "invalid_json"),
            (b"\xff\xfe", 400, "invalid_json"),
            (b"[" * 100_000, 400, "invalid_json"),
            (b"{}", 422, "missing_field"),
            (b'{"model": 7}', 422, "invalid_value"),
            (b'{"model": "unknown", "prompt": "x"}', 404, "model_not_found"),
        ]:
            async with client.session.post("/completion/v2", data=body) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (status, code)
        assert not server.calls
