"""Which server gets a request, by what the servers tell of the requests that they take."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from client.health.terms import Terms
from client.requests.request import read_request
from protocol.accepts import Accepts, Refusal, above, applies
from protocol.errors import ApiError, queue_full, unavailable, unprocessable
from protocol.openai import ChatCompletionRequest, OpenAICompletionRequest
from protocol.routes import COMPLETION_V1, OPENAI_CHAT_COMPLETIONS, OPENAI_COMPLETIONS
from protocol.status import ServerState
from server.api.refusals import check_refusals
from server.api.service import Job
from server.static_batching.options import refusals
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.stub import BUSY, Stub, stubs
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


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": True, "n": 2}])
async def test_a_server_that_refuses_says_why_where_no_other_is_known(
    make_gateway: MakeGateway, sb_url: str, fields: dict[str, Any]
) -> None:
    async with make_gateway(static_batching_server_urls=[sb_url]) as client:
        await client.ready()
        body = {"model": "static", **TEXT, **fields}
        async with client.session.post("/v1/completions", json=body) as response:
            error = (await response.json())["error"]
        assert (response.status, error["param"]) == (400, "stream")
        assert error["message"] == "stream: answers whole"


async def test_the_server_is_chosen_that_takes_the_request(make_gateway: MakeGateway) -> None:
    """Whatever its kind: what servers tell counts, also against what is taken for granted of their kind."""
    both = (OPENAI_COMPLETIONS, OPENAI_CHAT_COMPLETIONS)
    few = Refusal(option="n", reason="at most two", when={"n": above(2)})
    small = Stub(accepts=Accepts(routes=both, refusals=(few,)))
    large = Stub(accepts=Accepts(routes=both), others=BUSY)
    texts = Stub(kind="static_batching", accepts=Accepts(routes=both[:1]))
    servers, config = [small, large, texts], {"replica_wait_seconds": 0.3}  # which runs out
    async with stubs(*servers), make_gateway(servers, **config) as client:
        assert (await ask(client, "/v1/completions", TEXT))[0] == 200 and len(small.calls) == 1
        assert (await ask(client, "/v1/completions", TEXT | {"n": 3}))[0] == 200 and len(large.calls) == 1
        await small.kill()
        await large.kill()
        assert (await ask(client, "/v1/completions", TEXT | {"stream": True}))[0] == 200
        assert len(texts.calls) == 1
        status, error = await ask(client, "/v1/chat/completions", CHAT)
        assert status == 503 and b"no live server" in error
        assert len(texts.calls) == 1


async def test_a_route_that_no_server_tells_is_not_asked_of_one(make_gateway: MakeGateway) -> None:
    server = Stub(accepts=Accepts(routes=(OPENAI_COMPLETIONS,)))
    async with stubs(server), make_gateway([server]) as client:
        status, error = await ask(client, "/v1/chat/completions", CHAT)
        assert status == 404 and b"model_not_found" in error and not server.calls


TOLD = Accepts(routes=(OPENAI_COMPLETIONS, OPENAI_CHAT_COMPLETIONS), refusals=refusals(256))
OPTIONS: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"logprobs": 1}, None),
    ({"num_beams": 4}, None),
    ({"num_beams": 4, "logprobs": 0}, "logprobs"),
    ({"num_beams": 4, "logprobs": False}, None),
    ({"num_beams": 4, "logprobs": True}, "logprobs"),
    ({"num_beams": 4, "logprobs": True, "top_logprobs": 2}, "logprobs"),
    ({"prompt_lookup_num_tokens": 0}, None),
    ({"prompt_lookup_num_tokens": 4}, "prompt_lookup_num_tokens"),
    ({"prompt_lookup_num_tokens": 4, "temperature": 0}, None),
    ({"prompt_lookup_num_tokens": 4, "temperature": 0, "logprobs": 1}, "prompt_lookup_num_tokens"),
    ({"max_tokens": 255}, None),
    ({"max_tokens": 256}, "max_new_tokens"),
]


@pytest.mark.parametrize(("fields", "option"), OPTIONS)
def test_the_gateway_reads_requests_as_the_server_does(fields: dict[str, Any], option: str | None) -> None:
    """Of the body as it came it sees the options that the server's own reading has."""
    if isinstance(fields.get("logprobs"), bool):
        body: dict[str, Any] = {"model": "m", **CHAT, **fields}
        chat = ChatCompletionRequest.model_validate(body)
        logprobs = (chat.top_logprobs or 0) if chat.logprobs else None
        config = chat.generation_config(chat.max_tokens or 8, logprobs)
        route = OPENAI_CHAT_COMPLETIONS
    else:
        body = {"model": "m", **TEXT, **fields}
        text = OpenAICompletionRequest.model_validate(body)
        config = text.generation_config(text.max_tokens or 8, text.logprobs)
        route = OPENAI_COMPLETIONS
    request = read_request("x", route, json.dumps(body).encode())
    assert [r.option for r in TOLD.refusals if applies(r.rule(), request.option)] == [option] * (
        option is not None
    )
    assert Terms(TOLD).take(route, request.option) == (option is None)
    if option is None:
        check_refusals(Job("x", [1], config), TOLD.refusals)
    else:
        with pytest.raises(ApiError, match=f"^{option}: "):
            check_refusals(Job("x", [1], config), TOLD.refusals)


async def test_what_a_server_does_not_tell_it_judges_itself(make_gateway: MakeGateway) -> None:
    """Of a server without `accepts` the gateway assumes no rule, whatever its kind."""
    refusal = unprocessable("stream: a static-batching server answers whole", param="stream")
    server = Stub(kind="static_batching", refusal=refusal)
    server.accepts = None
    async with stubs(server), make_gateway([server]) as client:
        status, error = await ask(client, "/v1/completions", TEXT | {"stream": True})
        assert status == 422 and b"answers whole" in error and len(server.calls) == 1
        assert (await ask(client, "/tokenize", TEXT))[0] == 404 and len(server.calls) == 1


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        ({"stream": False}, True),
        ({"stream": True}, False),
        ({"stream": 1}, True),
        ({"prompt_lookup_num_tokens": "4", "num_beams": None, "logprobs": []}, True),
        ({"prompt": [5] * 256}, False),
        ({"prompt": [[5] * 256, [5]]}, False),
        ({"prompt": [[5] * 255, "x"]}, True),
        ({"prompt": [None]}, True),
    ],
)
def test_nonsense_is_for_the_server_to_judge(fields: dict[str, Any], taken: bool) -> None:
    request = read_request("x", OPENAI_COMPLETIONS, json.dumps({"model": "m", **TEXT, **fields}).encode())
    assert Terms(TOLD).take(request.route, request.option) == taken


def test_native_options_are_those_of_the_generation_config() -> None:
    body = {"model": "m", "prompt": "p", "generation_config": {"num_beams": 2, "logprobs": 0}}
    native = Accepts(routes=(COMPLETION_V1,), refusals=TOLD.refusals)
    request = read_request("x", COMPLETION_V1, json.dumps(body).encode())
    assert not Terms(native).take(request.route, request.option)
    assert Terms(Accepts(routes=(COMPLETION_V1,))).take(request.route, request.option)
    odd = read_request("x", COMPLETION_V1, json.dumps(body | {"generation_config": []}).encode())
    assert Terms(native).take(odd.route, odd.option)
