"""Hostile clients, and clients that leave: the gateway stays responsive and lets go of everything it held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from urllib.parse import quote

import pytest
from yarl import URL

from tests.client.conftest import MakeGateway
from tests.client.faults import memory, much, nothing_leaks
from tests.client.stub import Stub, stubs
from tests.serving import eventually


async def test_a_fault_in_one_watch_keeps_no_other_from_its_time_out(make_gateway: MakeGateway) -> None:
    server = Stub(seconds_per_token=1)
    async with stubs(server), make_gateway([server], first_byte_timeout_seconds=0.5) as client:
        deadlines = client.gateway.deadlines

        async def waits() -> None:
            deadline = deadlines.open("odd")
            deadline.phase(client.gateway.clock(), 0.0, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
            try:
                with deadline:
                    await asyncio.Event().wait()
            finally:
                deadlines.close(deadline)

        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(30):
                await waits()
        assert (await client.post("x", 4))[0] == 504


async def test_a_client_that_leaves_is_noticed_upstream(make_gateway: MakeGateway) -> None:
    server = Stub(seconds_per_token=0.05)
    async with stubs(server), make_gateway([server]) as client, nothing_leaks(client):
        for stream in (False, True):
            request = asyncio.create_task(client.post("x", 1000, stream=stream))
            await eventually(lambda: server.live == 1)
            request.cancel()
            await eventually(lambda: server.live == 0)
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


async def test_a_slow_reader_slows_the_server_down(make_gateway: MakeGateway) -> None:
    """Backpressure: what the client does not read, the gateway does not hoard."""
    server = Stub(padding="x" * 50_000)
    async with stubs(server), make_gateway([server]) as client:
        async with client.session.post("/completion/v2", json=much(2000)) as response:
            replica = next(iter(client.gateway.registry))
            left = 0
            async with asyncio.timeout(20):
                while replica.load.tokens != left:
                    before, left = memory(), replica.load.tokens
                    await asyncio.sleep(1)
            assert left > 1000  # it stands still, far from done
            assert memory() - before < 5e6
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
        writer.write(b"POST /completion/v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
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
            for byte in b"POST /completion/v2 HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 1000:
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
            (b"[]", 422, "invalid_value"),
            (b"\xff\xfe", 400, "invalid_json"),
            (b"[" * 50_000, 400, "invalid_json"),
            (b"[" * 100_000, 413, "too_many_values"),
            (b"{}", 422, "missing_field"),
            (b'{"model": 7}', 422, "invalid_value"),
            (b'{"model": "unknown", "prompt": "x"}', 404, "model_not_found"),
        ]:
            async with client.session.post("/completion/v2", data=body) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (status, code)
        assert not server.calls
