"""Servers that die, refuse or fail: the client notices nothing, or is told why."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from protocol.errors import (
    ApiError,
    cancelled,
    internal,
    queue_full,
    queue_timeout,
    unavailable,
    unprocessable,
)
from protocol.status import ServerState
from tests.client.calls import text_is_right
from tests.client.conftest import MakeGateway
from tests.client.one_life import OneLife
from tests.client.stub import BUSY, Stub, short_lives, stubs
from tests.serving import eventually


async def undisturbed(make_gateway: MakeGateway, prompt: str, tokens: int, **fields: Any) -> bytes:
    """The stream as one healthy server sends it."""
    async with stubs(server := Stub()), make_gateway([server]) as client:
        return await client.stream(prompt, tokens, **fields)


@pytest.mark.parametrize("events", [0, 1, 3, 7])
async def test_a_cut_stream_goes_on_at_a_peer(make_gateway: MakeGateway, events: int) -> None:
    expected = await undisturbed(make_gateway, "story", 8)
    first, peer = Stub(die_after=events), Stub(others=BUSY)
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        assert await client.stream("story", 8) == expected
        assert len(first.calls) == len(peer.calls) == 1
        assert ("resume" in peer.calls[0].body) == (events > 0)
        assert client.gateway.metrics.resumes == (events > 0)


async def test_a_cut_stream_goes_on_at_the_same_server_once_it_is_back(make_gateway: MakeGateway) -> None:
    expected = await undisturbed(make_gateway, "story", 30)
    server = Stub(seconds_per_token=0.01)
    async with stubs(server), make_gateway([server]) as client:
        stream = asyncio.create_task(client.stream("story", 30))
        for life in range(1, 4):
            await eventually(lambda life=life: len(server.calls) == life)
            await asyncio.sleep(0.05)
            await server.kill()
            await asyncio.sleep(0.2)
            await server.start()
        assert await stream == expected
        assert len(server.calls) == 4


async def test_a_stream_survives_many_deaths(make_gateway: MakeGateway) -> None:
    """More than `max_attempts`, since each attempt brings it further."""
    expected = await undisturbed(make_gateway, "story", 40)
    servers = [Stub(), Stub()]
    async with stubs(*servers), make_gateway(servers, max_attempts=3) as client:
        async with short_lives(servers, 3):
            assert await client.stream("story", 40) == expected
        assert sum(len(server.calls) for server in servers) > 10


async def test_a_whole_answer_is_asked_of_a_peer(make_gateway: MakeGateway) -> None:
    first, peer = Stub(die_after=0), Stub(others=BUSY)
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        assert text_is_right(await client.complete("x", 5), "x", 5)
        assert len(first.calls) == len(peer.calls) == 1


async def test_a_dead_server_is_found_out_by_the_first_request(make_gateway: MakeGateway) -> None:
    first, peer = Stub(), Stub(others=BUSY)
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        await first.kill()
        for _ in range(5):
            assert text_is_right(await client.complete("x", 5), "x", 5)
        dead = client.gateway.registry.get("continuous_batching", first.url)
        assert dead is not None and dead.state == "down"
        assert client.gateway.metrics.retries == 1


@pytest.mark.parametrize(
    ("refusal", "calls"),
    [
        (queue_full("full"), 2),
        (unavailable("draining"), 2),
        (ApiError(502, "bad", type="server_error"), 2),
        (unprocessable("no"), 1),
        (queue_timeout("too long"), 1),
        (internal("oops"), 2),
        (ApiError(400, "no", type="invalid_request_error"), 1),
        (cancelled(), 1),
    ],
    ids=lambda value: str(getattr(value, "status", value)),
)
@pytest.mark.parametrize("stream", [False, True])
async def test_only_safe_refusals_are_taken_elsewhere(
    make_gateway: MakeGateway, refusal: ApiError, calls: int, stream: bool
) -> None:
    first, peer = Stub(refusal=refusal), Stub(others=BUSY)
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        if calls == 2:
            if stream:
                assert (await client.stream("x", 5)).endswith(b"data: [DONE]\n\n")
            else:
                assert text_is_right(await client.complete("x", 5), "x", 5)
        else:
            status, headers, body = await client.post("x", stream=stream)
            assert status == refusal.status
            assert body == refusal.response().model_dump()
            for name in ("retry-after", "x-should-retry"):
                assert headers.get(name) == refusal.headers.get(name)
        assert len(first.calls) + len(peer.calls) == calls


async def test_when_all_are_full_the_client_is_told_at_once(make_gateway: MakeGateway) -> None:
    servers = [Stub(refusal=queue_full("full", retry_after=7)) for _ in range(3)]
    async with stubs(*servers), make_gateway(servers) as client:
        status, headers, body = await client.post()
        assert (status, headers["retry-after"], body["error"]["code"]) == (429, "7", "queue_full")
        assert [len(server.calls) for server in servers] == [1, 1, 1]


async def test_an_overload_is_not_multiplied(make_gateway: MakeGateway) -> None:
    """Retries of refused requests stay within the budget: 100 at once, then 20 % of requests."""
    servers = [Stub(refusal=queue_full("full")) for _ in range(3)]
    async with stubs(*servers), make_gateway(servers) as client:
        await asyncio.gather(*[client.post() for _ in range(400)])
        assert sum(len(server.calls) for server in servers) <= 400 + 100 + 0.2 * 400


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 502 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\n{",
        b"garbage\r\n\r\n",
    ],
    ids=["closed", "502", "503", "cut", "garbage"],
)
async def test_servers_that_are_well_but_break_every_answer_are_not_flooded(
    make_gateway: MakeGateway, raw: bytes
) -> None:
    """Each request is tried twice; after that retries are within the budget."""
    servers = [Stub(raw=raw) for _ in range(3)]
    async with stubs(*servers), make_gateway(servers) as client:
        await asyncio.gather(*[client.post() for _ in range(100)])
        assert sum(len(server.calls) for server in servers) <= 2 * 100 + 100 + 0.2 * 100


async def test_no_server_is_503_with_retry_after(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub()), make_gateway([server], replica_wait_seconds=0.2) as client:
        await server.kill()
        status, headers, body = await client.post()
        assert (status, body["error"]["code"]) == (503, "no_replica")
        assert int(headers["retry-after"]) >= 1
        await server.start()
        await client.ready()
        assert text_is_right(await client.complete("x", 5), "x", 5)


async def test_a_server_that_has_failed_is_not_waited_for(make_gateway: MakeGateway) -> None:
    """As one whose engine cannot load its model any more; one that loads would be waited for a minute."""
    async with stubs(server := Stub()), make_gateway([server], replica_wait_seconds=0.2) as client:
        (replica,) = client.gateway.registry
        server.state = ServerState.FAILED
        client.gateway.heartbeats.probe_now(replica)
        await eventually(lambda: replica.state == "down")
        async with asyncio.timeout(10):
            status, _, body = await client.post()
        assert (status, body["error"]["code"], server.calls) == (503, "no_replica", [])


async def test_requests_wait_for_a_restarting_server(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub()), make_gateway([server], replica_wait_seconds=5) as client:
        await server.kill()
        requests = [asyncio.create_task(client.complete(f"x{i}", 5)) for i in range(20)]
        await eventually(lambda: client.gateway.router.waiting == 20)
        server.state = ServerState.LOADING
        await server.start()
        await asyncio.sleep(0.3)
        server.state = ServerState.READY
        for i, request in enumerate(requests):
            assert text_is_right(await request, f"x{i}", 5)


async def test_the_waiting_room_is_bounded(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub()), make_gateway([server], max_waiting_requests=3) as client:
        await server.kill()
        answers = await asyncio.gather(*[client.post() for _ in range(8)])
        statuses = sorted(status for status, _, _ in answers)
        assert statuses == [429] * 5 + [503] * 3


async def test_an_engine_that_dies_within_a_stream_is_left_for_a_peer(make_gateway: MakeGateway) -> None:
    expected = await undisturbed(make_gateway, "story", 8)
    first = Stub(stream_error=unavailable("the engine was lost", code="engine_lost"))
    peer = Stub(others=BUSY)
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        assert await client.stream("story", 8) == expected
        assert "resume" in peer.calls[0].body


async def test_an_error_of_the_request_ends_its_stream(make_gateway: MakeGateway) -> None:
    first = Stub(stream_error=queue_timeout("too long"))
    peer = Stub(others=BUSY)
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        stream = await client.stream("story", 8)
        assert stream.endswith(b"event: error\ndata: " + queue_timeout("too long").json() + b"\n\n")
        assert not peer.calls


async def test_a_stream_that_no_server_can_continue_ends_with_an_error_event(
    make_gateway: MakeGateway,
) -> None:
    server = Stub(seconds_per_token=0.01)
    async with stubs(server), make_gateway([server], stream_wait_seconds=0.3) as client:
        stream = asyncio.create_task(client.stream("story", 100))
        await eventually(lambda: client.gateway.metrics.tokens > 2)
        await server.kill()
        assert b"\n\nevent: error\ndata: {" in await stream


async def test_a_cut_stream_waits_for_room(make_gateway: MakeGateway) -> None:
    expected = await undisturbed(make_gateway, "story", 8)
    first, peer = OneLife(die_after=3), Stub(others=BUSY, refusal=queue_full("full"))
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        stream = asyncio.create_task(client.stream("story", 8))
        await eventually(lambda: len(peer.calls) >= 3)
        peer.refusal = None
        assert await stream == expected


async def test_a_cut_stream_that_is_refused_ends_with_an_error_event(make_gateway: MakeGateway) -> None:
    first, peer = Stub(die_after=3), Stub(others=BUSY, refusal=unprocessable("no"))
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        stream = await client.stream("story", 8)
        assert b"\n\nevent: error\ndata: {" in stream and stream.count(b"data: ") == 4
