"""Requests that an engine answers which is not ours: what passes through, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from client.health.breaker import BreakerState
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.engines.fakes import FakeEngine, text_of
from tests.client.engines.formats import FORMATS, LLAMA_CPP, SGLANG, VLLM, Format
from tests.client.stub import stubs
from tests.serving import eventually

WORDS = "one two three"


async def post(client: GatewayClient, route: str = "/v1/completions", **fields: Any) -> tuple[int, Any]:
    body = {"model": "m", "prompt": WORDS, "max_tokens": 6} | fields
    async with client.session.post(route, json=body) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("format", FORMATS, ids=lambda one: one.owner)
async def test_answers_pass_as_they_are(make_gateway: MakeGateway, format: Format) -> None:
    server = FakeEngine(format=format)
    async with stubs(server), make_gateway([server]) as client:
        status, answer = await post(client)
        assert status == 200 and answer["choices"][0]["text"] == text_of(WORDS, 6)
        assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
        messages = [{"role": "user", "content": WORDS}]
        status, answer = await post(client, "/v1/chat/completions", messages=messages)
        assert answer["choices"][0]["message"]["content"] == text_of(WORDS, 6)
        assert client.gateway.metrics.tokens == 12
        sent = server.calls[0].body
        assert sent == {"model": "m", "prompt": WORDS, "max_tokens": 6}, "nothing is added"


@pytest.mark.parametrize("format", FORMATS, ids=lambda one: one.owner)
@pytest.mark.parametrize("options", [{}, {"include_usage": True}, {"continuous_usage_stats": True}])
async def test_streams_are_those_of_the_engine(
    make_gateway: MakeGateway, format: Format, options: dict[str, bool]
) -> None:
    """To the byte, whether the gateway asks for token ids or not."""
    server = FakeEngine(format=format)
    async with stubs(server), make_gateway([server]) as client:
        body = {"model": "m", "prompt": WORDS, "max_tokens": 9, "stream": True, "stream_options": options}
        headers = {"x-request-id": "r"}
        for fields in ({"temperature": 0}, {"temperature": 1}, {"temperature": 0, "return_token_ids": True}):
            asked, answers = body | fields, []
            for url in (server.url, client.url):
                async with client.session.post(f"{url}/v1/completions", json=asked, headers=headers) as one:
                    answers.append(await one.read())
            assert answers[0] == answers[1]
            asks = server.calls[-1].body.get("return_token_ids", False)
            assert asks == ((fields == {"temperature": 0} and format.tells_ids) or len(fields) == 2)
        assert client.gateway.metrics.tokens >= 27


async def test_lines_may_end_as_the_standard_allows(make_gateway: MakeGateway) -> None:
    server = FakeEngine(format=LLAMA_CPP, line=b"\r\n")
    async with stubs(server), make_gateway([server]) as client:
        body = {"model": "m", "prompt": WORDS, "max_tokens": 3, "stream": True}
        async with client.session.post("/v1/completions", json=body) as response:
            events = (await response.text()).split("\n\n")
        texts = [json.loads(event[6:])["choices"][0]["text"] for event in events[:3]]
        assert "".join(texts) == text_of(WORDS, 3) and events[3:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("format", FORMATS, ids=lambda one: one.owner)
async def test_routes_of_ours_are_refused_by_name(make_gateway: MakeGateway, format: Format) -> None:
    server = FakeEngine(format=format)
    async with stubs(server), make_gateway([server]) as client:
        for route in ("/completion/v1", "/completion/v2"):
            status, answer = await post(client, route)
            error = answer["error"]
            assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
            assert error["message"].startswith(f"model 'm' is served by {format.name}, which has /")
            assert error["message"].endswith(f"not {route}")
        status, answer = await post(client, "/tokenize")
        assert (status == 404) == (format is LLAMA_CPP), "its /tokenize is another one"
        assert not [call for call in server.calls if call.path != "/tokenize"]


ERRORS: list[tuple[int, bytes, int, dict[str, Any]]] = [
    (400, VLLM.error(400, "too long", "prompt"), 400, {"code": "BadRequestError", "param": "prompt"}),
    (400, SGLANG.error(400, "too long"), 400, {"code": "BadRequestError", "param": None}),
    (400, LLAMA_CPP.error(400, "too long"), 400, {"code": "server_error", "param": None}),
    (422, b'{"detail": [{"loc": ["body"], "msg": "too long"}]}', 400, {"code": None}),
    (400, b"too long", 400, {"code": None}),
    (404, b'{"detail": "too long"}', 404, {"code": None}),
    (413, b'{"error": "too long"}', 413, {"code": None}),
]


@pytest.mark.parametrize(("status", "body", "shown", "fields"), ERRORS)
async def test_errors_come_in_our_shape(
    make_gateway: MakeGateway, status: int, body: bytes, shown: int, fields: dict[str, Any]
) -> None:
    servers = [FakeEngine(fault=(status, body)), FakeEngine(fault=(status, body))]
    async with stubs(*servers), make_gateway(servers) as client:
        got, answer = await post(client)
        error = answer["error"]
        assert (got, set(error)) == (shown, {"message", "type", "param", "code"})
        assert (error["message"], error["type"]) == ("too long", "invalid_request_error")
        assert fields.items() <= error.items()
        assert sum(len(server.calls) for server in servers) == 1, "it is the request's fault"
        got, answer = await post(client, "/v1/messages", messages=[])
        assert (got, answer["type"], answer["error"]["message"]) == (shown, "error", "too long")


async def test_a_500_is_asked_of_one_other_server(make_gateway: MakeGateway) -> None:
    fault = (500, VLLM.error(500, "no"))
    servers = [FakeEngine(fault=fault), FakeEngine(fault=fault), FakeEngine(fault=fault)]
    async with stubs(*servers), make_gateway(servers) as client:
        status, answer = await post(client)
        assert (status, answer["error"]["message"], answer["error"]["code"]) == (500, "no", "internal_error")
        assert sum(len(server.calls) for server in servers) == 2


@pytest.mark.parametrize("status", [429, 503])
async def test_one_that_is_full_or_away_is_passed_over(make_gateway: MakeGateway, status: int) -> None:
    full, free = FakeEngine(fault=(status, b"{}")), FakeEngine(others=20)
    async with stubs(full, free), make_gateway([full, free]) as client:
        assert (await post(client))[0] == 200
        assert (len(full.calls), len(free.calls)) == (1, 1)


async def test_a_key_that_is_refused_is_not_the_clients_fault(make_gateway: MakeGateway) -> None:
    locked, free = FakeEngine(), FakeEngine(others=20)
    async with stubs(locked, free), make_gateway([locked, free]) as client:
        locked.key = "changed"
        assert (await post(client))[0] == 200
        assert (len(locked.calls), len(free.calls)) == (1, 1)


async def test_a_server_of_another_model_is_asked_again(make_gateway: MakeGateway) -> None:
    changed, free = FakeEngine(), FakeEngine(others=20)
    async with stubs(changed, free), make_gateway([changed, free]) as client:
        changed.model = "n"
        assert (await post(client))[0] == 200
        await client.ready(2)
        assert (await post(client, model="n"))[0] == 200


async def test_a_server_that_fails_again_and_again_gets_no_work(make_gateway: MakeGateway) -> None:
    broken, well = FakeEngine(raw=b"garbage"), FakeEngine()
    async with stubs(broken, well), make_gateway([broken, well]) as client:
        for n in range(12):
            assert (await post(client, prompt=f"p{n}"))[0] == 200
            await client.ready(2)
        state = next(r for r in client.gateway.registry if r.url == broken.url).breaker
        assert state.state(client.gateway.clock()) is not BreakerState.CLOSED
        assert len(broken.calls) <= 6


async def test_a_slow_answer_is_given_up(make_gateway: MakeGateway) -> None:
    slow = FakeEngine(seconds_per_token=1.0)
    async with stubs(slow), make_gateway([slow], first_byte_timeout_seconds=0.3) as client:
        status, answer = await post(client)
        assert (status, answer["error"]["code"]) == (504, "upstream_timeout")


async def test_prompts_that_begin_alike_go_to_one_server(make_gateway: MakeGateway) -> None:
    servers = [FakeEngine(), FakeEngine()]
    async with stubs(*servers), make_gateway(servers) as client:
        for n in range(8):
            await post(client, prompt="a long beginning " * 60 + str(n))
        assert sorted(len(server.calls) for server in servers) == [0, 8]


async def test_each_tenant_has_a_cache_of_its_own(make_gateway: MakeGateway) -> None:
    servers = [FakeEngine(format=format, model=format.owner) for format in FORMATS]
    async with stubs(*servers), make_gateway(servers, api_keys=["a", "b"]) as client:
        salts = {}
        for server in servers:
            for key, own in (("a", None), ("b", None), ("a", "x"), ("a", "x")):
                body = {"model": server.model, "prompt": WORDS, "max_tokens": 2}
                body |= {} if own is None else {"cache_salt": own}
                headers = {"authorization": f"Bearer {key}"}
                async with client.session.post("/v1/completions", json=body, headers=headers) as response:
                    assert response.status == 200
            salts[server.model] = [call.body.get("cache_salt") for call in server.calls]
        for name in ("vllm", "sglang"):
            a, b, divided, again = salts[name]
            assert len({a, b, divided}) == 3 and divided == again and None not in (a, b)
        assert salts["llamacpp"] == [None, None, "x", "x"], "it has no such field"


async def test_clients_that_leave_free_the_server(make_gateway: MakeGateway) -> None:
    server = FakeEngine(seconds_per_token=0.05)
    async with stubs(server), make_gateway([server]) as client:
        body = {"model": "m", "prompt": WORDS, "max_tokens": 400, "stream": True, "temperature": 0}
        async with client.session.post("/v1/completions", json=body) as response:
            await response.content.readany()
        await eventually(lambda: not server.live)
