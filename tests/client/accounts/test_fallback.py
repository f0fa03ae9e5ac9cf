"""An account answers for a model whose own servers cannot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from protocol.errors import ApiError, queue_full
from protocol.status import ServerState
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.openai_calls import account, chat
from tests.client.stub import Stub, stubs
from tests.serving import eventually

ROUTE = "/v1/chat/completions"


@asynccontextmanager
async def behind(
    make_gateway: MakeGateway, server: Stub, endpoint: Stub, **config: float
) -> AsyncIterator[GatewayClient]:
    """A gateway with one server, and an account for the same model."""
    async with stubs(server, endpoint):
        accounts = [account(endpoint.url, models=["fake"])]
        async with make_gateway([server], openai_jumper_configs=accounts, **config) as client:
            yield client


async def test_a_server_comes_first(make_gateway: MakeGateway) -> None:
    server, endpoint = Stub(model="fake"), Stub(model="fake")
    async with behind(make_gateway, server, endpoint) as client:
        assert (await chat(client, ROUTE))[0] == 200
        assert (len(server.calls), len(endpoint.calls)) == (1, 0)


@pytest.mark.parametrize("state", [ServerState.LOADING, ServerState.DRAINING, ServerState.FAILED, None])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_account_answers_while_no_server_is_ready(
    make_gateway: MakeGateway, state: ServerState | None, stream: bool
) -> None:
    server, endpoint = Stub(model="fake"), Stub(model="fake")
    async with behind(make_gateway, server, endpoint, replica_wait_seconds=30) as client:
        (replica,) = client.gateway.registry
        if state is None:
            await server.kill()
        else:
            server.state = state
        client.gateway.heartbeats.probe_now(replica)
        await eventually(lambda: replica.state != "ready")
        async with asyncio.timeout(5):  # nobody waits for the server
            assert (await chat(client, ROUTE, stream=stream))[0] == 200
        assert (len(server.calls), len(endpoint.calls)) == (0, 1)
        server.state = ServerState.READY
        if state is None:
            await server.start()
        await client.ready()
        assert (await chat(client, ROUTE))[0] == 200
        assert len(server.calls) == 1


async def test_a_server_that_is_lost_with_the_request(make_gateway: MakeGateway) -> None:
    """Before the first byte the account takes over at once."""
    server, endpoint = Stub(model="fake"), Stub(model="fake")
    async with behind(make_gateway, server, endpoint, replica_wait_seconds=30) as client:
        await server.kill()
        async with asyncio.timeout(5):
            assert (await chat(client, ROUTE))[0] == 200
        assert len(endpoint.calls) == 1


async def test_a_stream_that_has_begun_waits_for_its_server(make_gateway: MakeGateway) -> None:
    server, endpoint = Stub(model="fake", die_after=3), Stub(model="fake")
    async with behind(make_gateway, server, endpoint) as client:
        request = asyncio.create_task(chat(client, ROUTE, stream=True, max_tokens=8))
        await eventually(lambda: bool(server.calls))
        await server.kill()
        await asyncio.sleep(0.5)
        await server.start()
        status, _, body = await request
        assert status == 200 and body.endswith(b"data: [DONE]\n\n") and not endpoint.calls


async def test_where_the_account_rests_the_server_is_waited_for(make_gateway: MakeGateway) -> None:
    server = Stub(model="fake")
    endpoint = Stub(model="fake", refusal=ApiError(401, "no", type="x"))
    async with behind(make_gateway, server, endpoint, replica_wait_seconds=30) as client:
        (replica,) = client.gateway.registry
        await server.kill()
        client.gateway.heartbeats.probe_now(replica)
        await eventually(lambda: replica.state == "down")
        assert (await chat(client, ROUTE))[0] == 503
        request = asyncio.create_task(chat(client, ROUTE))
        await eventually(lambda: client.gateway.router.waiting == 1)
        await server.start()
        assert (await request)[0] == 200


@pytest.mark.parametrize("refusal", [queue_full("full"), ApiError(500, "oops", type="server_error")])
async def test_what_a_ready_server_says_is_the_answer(make_gateway: MakeGateway, refusal: ApiError) -> None:
    server, endpoint = Stub(model="fake", refusal=refusal), Stub(model="fake")
    async with behind(make_gateway, server, endpoint) as client:
        status, _, body = await chat(client, ROUTE)
        assert (status, json.loads(body)["error"]["message"]) == (refusal.status, refusal.body.message)
        assert not endpoint.calls
