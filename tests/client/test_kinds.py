"""Which kind of server gets a request on ``/v1/*`` that both kinds serve."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from client.request import beyond_static
from protocol.errors import ApiError, queue_full, unavailable
from protocol.openai import ChatCompletionRequest, OpenAICompletionRequest
from protocol.status import ServerState
from server.api.service import Job
from server.static_batching.options import check_options
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.stub import Stub, stubs
from tests.serving import eventually

CHAT = {"messages": [{"role": "user", "content": "story"}]}
TEXT = {"prompt": "story"}
STREAMS: list[tuple[str, dict[str, Any]]] = [("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)]


async def ask(client: GatewayClient, route: str, fields: dict[str, Any]) -> tuple[int, bytes]:
    body = {"model": "m", "max_tokens": 8, **fields}
    async with client.session.post(route, json=body, headers={"x-request-id": "mine"}) as response:
        return response.status, await response.read()


@pytest.mark.parametrize(("route", "fields"), STREAMS)
async def test_a_stream_waits_for_a_server_that_streams(
    make_gateway: MakeGateway, route: str, fields: dict[str, Any]
) -> None:
    cb, sb = Stub(), Stub(kind="static_batching")
    async with stubs(cb, sb), make_gateway([cb, sb]) as client:
        expected = await ask(client, route, fields | {"stream": True})
        assert expected[0] == 200 and expected[1].endswith(b"data: [DONE]\n\n")
        await cb.kill()
        request = asyncio.create_task(ask(client, route, fields | {"stream": True}))
        await eventually(lambda: client.gateway.router.waiting == 1)
        await cb.start()
        assert await request == expected
        assert not sb.calls


@pytest.mark.parametrize(("route", "fields"), STREAMS)
async def test_a_cut_stream_waits_for_a_server_that_streams(
    make_gateway: MakeGateway, route: str, fields: dict[str, Any]
) -> None:
    cb, sb = Stub(), Stub(kind="static_batching")
    lost = unavailable("the engine was lost", code="engine_lost")
    async with stubs(cb, sb), make_gateway([cb, sb]) as client:
        expected = await ask(client, route, fields | {"stream": True})
        cb.stream_error = lost
        assert await ask(client, route, fields | {"stream": True}) == expected
        assert "resume" in cb.calls[-1].body and not sb.calls


@pytest.mark.parametrize(
    ("state", "refusal", "status"),
    [(ServerState.READY, queue_full("full"), 429), (ServerState.FAILED, None, 503)],
)
async def test_a_stream_that_no_server_takes_now_may_come_back(
    make_gateway: MakeGateway, state: ServerState, refusal: ApiError | None, status: int
) -> None:
    cb, sb = Stub(refusal=refusal), Stub(kind="static_batching")
    async with stubs(cb, sb), make_gateway([cb, sb], replica_wait_seconds=0) as client:
        cb.state = state
        for replica in client.gateway.registry:
            client.gateway.heartbeats.probe_now(replica)
        known = client.gateway.registry.get(cb.kind, cb.url)
        assert known is not None
        await eventually(lambda: (known.state == "ready") == (state is ServerState.READY))
        assert (await ask(client, "/v1/completions", TEXT | {"stream": True}))[0] == status
        assert not sb.calls
        if status == 503:  # which whole answers do not notice
            assert (await ask(client, "/v1/completions", TEXT))[0] == 200 and len(sb.calls) == 1


async def test_what_static_batching_refuses_waits_too(make_gateway: MakeGateway) -> None:
    cb, sb = Stub(), Stub(kind="static_batching")
    async with stubs(cb, sb), make_gateway([cb, sb]) as client:
        await cb.kill()
        beams = TEXT | {"num_beams": 2, "logprobs": 0}
        request = asyncio.create_task(ask(client, "/v1/completions", beams))
        await eventually(lambda: client.gateway.router.waiting == 1)
        await cb.start()
        assert (await request)[0] == 200
        assert not sb.calls


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"stream": True}, "stream"), ({"num_beams": 2, "logprobs": 1}, "logprobs")],
)
async def test_what_only_another_kind_could_do_is_refused_by_name(
    make_gateway: MakeGateway, fields: dict[str, Any], param: str
) -> None:
    async with stubs(sb := Stub(kind="static_batching")), make_gateway([sb]) as client:
        body = {"model": "m", **TEXT, **fields}
        async with client.session.post("/v1/completions", json=body) as response:
            error = (await response.json())["error"]
        assert (response.status, error["param"]) == (422, param)
        assert error["message"].startswith(f"{param}: ") and not sb.calls


OPTIONS: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"logprobs": 1}, None),
    ({"num_beams": 4}, None),
    ({"num_beams": 4, "logprobs": 0}, "logprobs"),
    ({"num_beams": 4, "logprobs": False}, None),
    ({"num_beams": 4, "logprobs": True}, "logprobs"),
    ({"prompt_lookup_num_tokens": 0}, None),
    ({"prompt_lookup_num_tokens": 4}, "prompt_lookup_num_tokens"),
    ({"prompt_lookup_num_tokens": 4, "temperature": 0}, None),
    ({"prompt_lookup_num_tokens": 4, "temperature": 0, "logprobs": 1}, "prompt_lookup_num_tokens"),
]


@pytest.mark.parametrize(("fields", "option"), OPTIONS)
def test_what_static_batching_is_known_to_refuse_it_refuses(
    fields: dict[str, Any], option: str | None
) -> None:
    assert beyond_static(fields) == option
    if isinstance(fields.get("logprobs"), bool):
        config = ChatCompletionRequest(model="m", **CHAT, **fields).generation_config(
            8, 0 if fields["logprobs"] else None
        )
    else:
        config = OpenAICompletionRequest(model="m", **TEXT, **fields).generation_config(
            8, fields.get("logprobs")
        )
    if option is None:
        check_options(Job("x", [1], config))
    else:
        with pytest.raises(ApiError, match=f"^{option}: "):
            check_options(Job("x", [1], config))


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"stream": False}, None),
        ({"stream": True}, "stream"),
        ({"prompt_lookup_num_tokens": "4", "num_beams": None, "logprobs": []}, None),
    ],
)
def test_streams_and_nonsense(fields: dict[str, Any], option: str | None) -> None:
    assert beyond_static(fields) == option
