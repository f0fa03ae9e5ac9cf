"""Which failures shut a server off, and which are a request's own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from protocol.errors import (
    ApiError,
    internal,
    queue_full,
)
from tests.client.calls import Call, text_is_right
from tests.client.conftest import MakeGateway
from tests.client.stub import BUSY, Stub, stubs
from tests.serving import eventually


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("servers", [1, 3])
async def test_one_client_s_failing_requests_shut_no_server_off(
    make_gateway: MakeGateway, servers: int, stream: bool
) -> None:
    """What fails on two servers is the request's own: each good one beside it is answered at once."""
    replicas = [Poisoned() for _ in range(servers)]
    async with stubs(*replicas), make_gateway(replicas) as client:
        for round in range(8):
            answers = await asyncio.gather(*[client.post("poison", stream=stream) for _ in range(10)])
            assert {status for status, _, _ in answers} == {500}
            assert all(body == internal("oops").response().model_dump() for _, _, body in answers)
            assert text_is_right(await client.complete(f"good {round}", 5), f"good {round}", 5)
        assert sum(len(replica.calls) for replica in replicas) <= 2 * 80 + 8
        assert {r.breaker.state(client.gateway.clock()) for r in client.gateway.registry} == {"closed"}


async def test_failing_requests_take_no_retries_from_others(make_gateway: MakeGateway) -> None:
    replicas = [Poisoned() for _ in range(3)]
    async with stubs(*replicas), make_gateway(replicas) as client:
        await asyncio.gather(*[client.post("poison") for _ in range(300)])
        full, peer = replicas[0], replicas[1:]
        full.refusal = queue_full("full")
        for server in peer:
            server.others = BUSY
        for number in range(10):
            assert text_is_right(await client.complete(f"good {number}", 5), f"good {number}", 5)


@dataclass
class Poisoned(Stub):
    """Fails on one prompt, as with a template that raises; where it is `odd`, on every one."""

    odd: bool = False
    how: ApiError | bytes = field(default_factory=lambda: internal("oops"))

    async def _complete(self, call: Call, writer: asyncio.StreamWriter) -> bool:
        bad = self.odd or call.prompt == "poison"
        if isinstance(self.how, bytes):
            self.raw = self.how if bad else None
        elif bad:
            await self._whole(writer, self.how.status, self.how.json(), self.how.headers)
            return True
        return await super()._complete(call, writer)


HALF_AN_ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"a'


@pytest.mark.parametrize("how", [internal("oops"), HALF_AN_ANSWER, ApiError(502, "x", type="server_error")])
async def test_a_server_that_alone_fails_is_shut_off_and_comes_back(
    make_gateway: MakeGateway, how: ApiError | bytes
) -> None:
    odd, peer = Poisoned(odd=True, how=how), Stub(others=BUSY)
    async with stubs(odd, peer), make_gateway([odd, peer]) as client:
        replica = client.gateway.registry.get("continuous_batching", odd.url)
        assert replica is not None
        for number in range(20):
            assert text_is_right(await client.complete(f"{number}", 5), f"{number}", 5)
            await eventually(lambda: replica.state == "ready")
        assert replica.breaker.state(client.gateway.clock()) != "closed"
        assert len(odd.calls) < 12 and len(peer.calls) == 20
        odd.odd, odd.raw = False, None
        peer.others = 100
        await eventually(lambda: replica.breaker.allows(client.gateway.clock()))
        await client.complete("x", 5)
        await client.complete("x", 5)
        assert replica.breaker.state(client.gateway.clock()) == "closed"


async def test_the_last_server_of_a_model_is_never_shut_off(make_gateway: MakeGateway) -> None:
    server = Stub()
    async with stubs(server), make_gateway([server]) as client:
        (replica,) = client.gateway.registry
        for _ in range(10):
            replica.breaker.failure(replica.breaker.sent(), client.gateway.clock())
        assert replica.breaker.state(client.gateway.clock()) == "open"
        async with asyncio.timeout(0.5):
            assert text_is_right(await client.complete("x", 5), "x", 5)
        assert replica.breaker.state(client.gateway.clock()) == "closed"


@pytest.mark.parametrize("others", [True, False])
async def test_a_slow_request_says_nothing_of_a_server_that_serves_others(
    make_gateway: MakeGateway, others: bool
) -> None:
    server = Stub(seconds_per_token=0.04)
    async with stubs(server), make_gateway([server], first_byte_timeout_seconds=0.5) as client:
        (replica,) = client.gateway.registry

        async def beside() -> None:
            while others:
                await client.complete("x", 1)

        serving = asyncio.create_task(beside())
        slow = await asyncio.gather(*[client.post("x", 100) for _ in range(10)])
        assert {status for status, _, _ in slow} == {504}
        state = replica.breaker.state(client.gateway.clock())
        assert state == ("closed" if others else "open")
        serving.cancel()
