"""A client that has its whole answer has been answered, whatever comes after it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from client.requests.deadline import TICK
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.openai_calls import account, chat
from tests.client.stub import Stub, stubs
from tests.serving import eventually

SLOW: dict[str, Any] = {"seconds_per_token": TICK / 2, "late_end": TICK}
"""A stream that takes long enough for the gateway to listen whether its client leaves, and whose HTTP
message ends long enough after its last event."""


def finished(client: GatewayClient, route: str = "/completion/v2") -> dict[int, int]:
    counts = client.gateway.metrics.finished
    return {status: count for (path, status), count in counts.items() if path == route}


async def test_a_stream_whose_message_ends_late(make_gateway: MakeGateway) -> None:
    server = Stub(**SLOW)
    async with stubs(server), make_gateway([server]) as client:
        for _ in range(2):
            data = await client.stream("x", 4)
            assert data.endswith(b"data: [DONE]\n\n")
            await eventually(lambda: not client.gateway.deadlines.in_flight)
            assert finished(client).keys() == {200}
            kept = set(server.connections)
        await client.stream("x", 1)
        assert server.connections == kept  # each was read to its end, and used again


async def test_a_client_that_leaves_with_the_last_event(make_gateway: MakeGateway) -> None:
    """As SDKs do, which read no further than to ``[DONE]``."""
    server = Stub(**SLOW)
    async with stubs(server), make_gateway([server]) as client:
        body = {"model": "m", "prompt": "x", "stream": True, "generation_config": {"max_new_tokens": 4}}
        async with client.session.post("/completion/v2", json=body) as response:
            await response.content.readuntil(b"[DONE]")
            response.close()
        await eventually(lambda: not client.gateway.deadlines.in_flight)
        assert finished(client) == {200: 1}


async def test_what_is_answered_cannot_be_cancelled(make_gateway: MakeGateway) -> None:
    server = Stub(late_end=3 * TICK)
    async with stubs(server), make_gateway([server]) as client:
        headers = {"x-request-id": "mine"}
        body = {"model": "m", "prompt": "x", "stream": True, "generation_config": {"max_new_tokens": 1}}
        async with client.session.post("/completion/v2", json=body, headers=headers) as response:
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
            async with client.session.delete("/requests/mine") as answer:
                assert answer.status == 404
        await eventually(lambda: not client.gateway.deadlines.in_flight)
        assert finished(client) == {200: 1}


@pytest.mark.parametrize("cut", ["drain", "lease"])
async def test_nothing_is_said_after_the_end(
    make_gateway: MakeGateway, caplog: pytest.LogCaptureFixture, cut: str
) -> None:
    """Neither an end of the gateway nor the loss of the server comes too late to be harmless."""
    server = Stub(late_end=2 * TICK)
    async with stubs(server), make_gateway([server]) as client:
        assert (await client.stream("x", 1)).endswith(b"data: [DONE]\n\n")
        assert client.gateway.deadlines.in_flight
        if cut == "drain":
            await client.gateway.cut_short()
        for replica in client.gateway.registry:
            for lease in list(replica.load.leases):
                lease.lost()
        await eventually(lambda: not client.gateway.deadlines.in_flight)
        assert finished(client) == {200: 1} and "Traceback" not in caplog.text


async def test_a_stream_of_an_account_whose_message_ends_late(make_gateway: MakeGateway) -> None:
    server = Stub(model="fake", **SLOW)
    async with stubs(server):
        config = {"openai_jumper_configs": [account(server.url)]}
        async with make_gateway(**config) as client:
            status, _, body = await chat(client, stream=True, max_tokens=4)
            assert status == 200 and body.endswith(b"data: [DONE]\n\n")
            await eventually(lambda: not client.gateway.deadlines.in_flight)
            assert finished(client, "/chat_completion/v1") == {200: 1}


async def test_a_client_that_leaves_before_the_end_is_counted_as_gone(make_gateway: MakeGateway) -> None:
    server = Stub(**SLOW)
    async with stubs(server), make_gateway([server]) as client:
        request = asyncio.create_task(client.stream("x", 40))
        await eventually(lambda: server.live == 1)
        request.cancel()
        await eventually(lambda: not client.gateway.deadlines.in_flight)
        assert finished(client) == {499: 1}
