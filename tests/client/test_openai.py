"""The OpenAI surface through the gateway: the unmodified SDK against servers of this stack, and
accounts whose endpoint is such a server or misbehaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from client.accounts import Account, pick_account
from client.asgi import MAX_HOPS
from client.config import GatewayConfig, OpenAIJumperConfig
from protocol.errors import ApiError, internal, unprocessable
from server.api.app import create_app
from server.text.tokenizer import Tokenizer
from tests.api.fake import REPLY, FakeService
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.stub import Stub, stubs
from tests.serving import eventually, serving
from utils.config import ConfigError, load_config

MESSAGES: Any = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture
def cb(tokenizer: Tokenizer) -> FakeService:
    return FakeService(tokenizer)


@pytest.fixture
def cb_url(cb: FakeService) -> Iterator[str]:
    with serving(create_app(cb)) as url:
        yield url


@pytest.fixture
def sb_url(tokenizer: Tokenizer) -> Iterator[str]:
    service = FakeService(tokenizer, "static_batching")
    service.model_id, service.can_stream = "static", False
    with serving(create_app(service)) as url:
        yield url


def sdk(client: GatewayClient, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=client.url + "/v1", api_key=key, max_retries=0)


async def test_the_async_sdk(make_gateway: MakeGateway, cb_url: str) -> None:
    async with make_gateway(continuous_batching_server_urls=[cb_url]) as client, sdk(client) as ai:
        await client.ready()
        assert [model.id async for model in ai.models.list()] == ["fake"]
        chat = await ai.chat.completions.create(
            model="fake", messages=MESSAGES, n=2, max_completion_tokens=200, seed=1, logprobs=True
        )
        assert chat.choices[0].message.content == REPLY and len(chat.choices) == 2
        assert chat.choices[0].logprobs is not None and chat.usage is not None
        stream = await ai.chat.completions.create(
            model="fake",
            messages=MESSAGES,
            max_completion_tokens=200,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == REPLY
        assert chunks[-1].usage is not None
        text = await ai.completions.create(model="fake", prompt="x", max_tokens=200, stop=["answer"])
        assert text.choices[0].text == REPLY.partition("answer")[0]
        assert text.choices[0].finish_reason == "stop"


async def test_the_sync_sdk(make_gateway: MakeGateway, cb_url: str) -> None:
    async with make_gateway(continuous_batching_server_urls=[cb_url]) as client:
        await client.ready()

        def use() -> str:
            with openai.OpenAI(base_url=client.url + "/v1", api_key="none") as ai:
                chunks = ai.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
                return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

        assert await asyncio.to_thread(use) == REPLY


async def test_sdk_errors(make_gateway: MakeGateway, cb_url: str) -> None:
    config = {"continuous_batching_server_urls": [cb_url], "api_keys": ["secret"]}
    async with make_gateway(**config) as client:
        await client.ready()
        async with sdk(client) as ai:
            with pytest.raises(openai.AuthenticationError):
                await ai.chat.completions.create(model="fake", messages=MESSAGES)
            with pytest.raises(openai.AuthenticationError):
                await ai.models.list()
        async with sdk(client, "secret") as ai:
            with pytest.raises(openai.NotFoundError, match="fake"):
                await ai.chat.completions.create(model="gpt-9", messages=MESSAGES)
            with pytest.raises(openai.UnprocessableEntityError) as refused:
                await ai.chat.completions.create(model="fake", messages=MESSAGES, temperature=9)
            assert refused.value.param == "temperature"


async def test_the_sdk_does_not_send_a_cancelled_request_again(make_gateway: MakeGateway) -> None:
    """As it would any other 409."""
    server = Stub(seconds_per_token=0.05)
    async with stubs(server), make_gateway([server]) as client:
        async with openai.AsyncOpenAI(base_url=client.url + "/v1", api_key="none", max_retries=2) as ai:
            call = ai.completions.create(
                model="m", prompt="x", max_tokens=1000, extra_headers={"X-Request-Id": "cx"}
            )
            request = asyncio.create_task(call)
            await eventually(lambda: server.live == 1)
            async with client.session.delete("/requests/cx") as response:
                assert response.status == 204
            with pytest.raises(openai.ConflictError):
                await request
        assert len(server.calls) == 1


async def test_answers_pass_through_byte_by_byte(
    make_gateway: MakeGateway, cb: FakeService, cb_url: str
) -> None:
    """Beside the time stamp, which is the server's, nothing differs from asking the server itself."""
    cb.pending_tokens = 4321
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/completion/v2", {"prompt": "x"}),
        ("/completion/v2", {"prompt": [1, 2, 3], "return_token_ids": True}),
        ("/v1/completions", {"prompt": "x", "logprobs": 1, "echo": False}),
        ("/v1/chat/completions", {"messages": MESSAGES, "n": 2, "temperature": 1}),
    ]
    async with make_gateway(continuous_batching_server_urls=[cb_url]) as client:
        await client.ready()
        client.session.headers["x-request-id"] = "same"
        for route, body in bodies:
            for stream in (False, True):
                answers = []
                for base in (client.url, cb_url):
                    request = {"model": "fake", **body, "stream": stream}
                    async with client.session.post(base + route, json=request) as response:
                        assert response.status == 200
                        answers.append(await response.read())
                assert without_time(answers[0]) == without_time(answers[1])
        replica = next(iter(client.gateway.registry))
        now = client.gateway.clock()
        assert 3000 < replica.load.expected_tokens(now) <= 4321  # the server's own word


def without_time(answer: bytes) -> bytes:
    parts = answer.split(b'"created":')
    return parts[0] + b"".join(part.lstrip(b"0123456789") for part in parts[1:])


async def test_models_of_both_kinds_of_servers(make_gateway: MakeGateway, cb_url: str, sb_url: str) -> None:
    config = {"continuous_batching_server_urls": [cb_url], "static_batching_server_urls": [sb_url]}
    async with make_gateway(**config) as client, sdk(client) as ai:
        await client.ready(2)
        models = [model async for model in ai.models.list()]
        assert [model.id for model in models] == ["fake", "static"]
        assert [await ai.models.retrieve(model.id) for model in models] == models
        with pytest.raises(openai.NotFoundError, match="served: fake, static") as unknown:
            await ai.models.retrieve("org/fake")
        assert unknown.value.code == "model_not_found"
        chat = await ai.chat.completions.create(model="static", messages=MESSAGES, max_tokens=200)
        assert chat.choices[0].message.content == REPLY
        with pytest.raises(openai.UnprocessableEntityError, match="stream: only static-batching"):
            await ai.chat.completions.create(model="static", messages=MESSAGES, stream=True)
        for route, model, status in [
            ("/completion/v1", "static", 200),
            ("/completion/v1", "fake", 404),
            ("/completion/v2", "static", 404),
        ]:
            async with client.session.post(route, json={"model": model, "prompt": "x"}) as response:
                assert response.status == status
        for kind, models in (("cb", ["fake"]), ("sb", ["static"])):
            async with client.session.get(f"/{kind}_server/available_models") as response:
                assert await response.json() == models


async def test_a_server_that_has_not_told_its_model_may_do_what_others_cannot(
    make_gateway: MakeGateway, sb_url: str
) -> None:
    """A gateway that starts while the only server with streams is down."""
    away = {"continuous_batching_server_urls": ["http://127.0.0.1:9"], "replica_wait_seconds": 0.1}
    async with make_gateway(static_batching_server_urls=[sb_url], **away) as client, sdk(client) as ai:
        await client.ready(1)
        with pytest.raises(openai.InternalServerError, match="no live server") as refusal:
            await ai.chat.completions.create(model="static", messages=MESSAGES, stream=True)
        assert refusal.value.status_code == 503


# --- accounts


def account(url: str, key: str = "key", **fields: Any) -> dict[str, Any]:
    return {"api_key": key, "org_id": None, "base_url": url + "/v1", **fields}


async def chat(
    client: GatewayClient, route: str = "/chat_completion/v1", **fields: Any
) -> tuple[int, Any, bytes]:
    body = {"model": "fake", "messages": MESSAGES, "max_tokens": 200, **fields}
    async with client.session.post(route, json=body) as response:
        return response.status, response.headers, await response.read()


async def test_an_account_at_a_server_of_this_stack(make_gateway: MakeGateway, cb_url: str) -> None:
    config = [account(cb_url, org_id="org", models=["fake"])]
    async with make_gateway(openai_jumper_configs=config) as client, sdk(client) as ai:
        status, _, body = await chat(client)
        assert status == 200 and json.loads(body)["choices"][0]["message"]["content"] == REPLY
        status, _, body = await chat(client, stream=True, stream_options={"include_usage": True})
        assert body.endswith(b"data: [DONE]\n\n")
        assert [model.id async for model in ai.models.list()] == ["fake"]
        assert (await ai.models.retrieve("fake")).owned_by == "openai"
        # on /v1 as well, since the account lists the model
        stream = await ai.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == REPLY
        text = await ai.completions.create(model="fake", prompt="x", max_tokens=200)
        assert text.choices[0].text == REPLY
        (known,) = client.gateway.jumpers
        usage = json.loads((await chat(client))[2])["usage"]["total_tokens"]
        assert known.tokens_used >= 3 * usage and not known.load.leases
        async with client.session.get("/openai_jumper/is_available") as response:
            assert await response.json() == "1"


async def test_a_model_that_no_account_lists(make_gateway: MakeGateway, cb_url: str) -> None:
    async with make_gateway(openai_jumper_configs=[account(cb_url, models=["other"])]) as client:
        status, _, body = await chat(client)
        assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")


async def test_an_unknown_model_is_told_of_those_that_its_route_serves(
    make_gateway: MakeGateway, cb_url: str
) -> None:
    config = {
        "continuous_batching_server_urls": [cb_url],
        "openai_jumper_configs": [account(cb_url, models=["fake", "other"])],
    }
    async with make_gateway(**config) as client, sdk(client) as ai:
        await client.ready(1)
        with pytest.raises(openai.NotFoundError, match=r"\(served: fake, other\)"):
            await ai.chat.completions.create(model="nope", messages=MESSAGES)
        async with client.session.post("/completion/v2", json={"model": "nope", "prompt": "x"}) as response:
            assert response.status == 404 and "(served: fake)" in await response.text()


async def test_an_account_that_leads_back_to_the_gateway(make_gateway: MakeGateway) -> None:
    async with make_gateway() as client:
        config = GatewayConfig.model_validate(
            {"openai_jumper_configs": [account(client.url, models=["loop"])]}
        )
        client.gateway.configure(config)
        body = {"model": "loop", "messages": MESSAGES}
        async with client.session.post("/v1/chat/completions", json=body) as response:
            assert response.status == 508 and "leads back" in await response.text()
        assert sum(client.gateway.metrics.received.values()) == 1 + MAX_HOPS


async def test_without_accounts(make_gateway: MakeGateway) -> None:
    async with make_gateway() as client:
        status, _, body = await chat(client)
        assert (status, json.loads(body)["error"]["code"]) == (503, "no_account")
        async with client.session.get("/openai_jumper/is_available") as response:
            assert await response.json() == "0"


async def test_an_account_without_a_list_of_models_serves_its_own_route_only(
    make_gateway: MakeGateway, cb_url: str
) -> None:
    async with make_gateway(openai_jumper_configs=[account(cb_url)]) as client:
        assert (await chat(client))[0] == 200
        assert (await chat(client, "/v1/chat/completions"))[0] == 404


@pytest.mark.parametrize(
    ("refusal", "rest"),
    [
        (ApiError(429, "slow", type="rate_limit", retry_after=33), 33),
        (ApiError(429, "slow", type="rate_limit"), 1),
        (ApiError(401, "Incorrect API key provided: first-key", type="auth"), 600),
        (internal("oops"), 1),
    ],
    ids=lambda value: str(getattr(value, "status", value)),
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_account_rests_and_the_next_one_answers(
    make_gateway: MakeGateway, refusal: ApiError, rest: float, stream: bool
) -> None:
    first, second = Stub(model="fake", refusal=refusal), Stub(model="fake")
    async with stubs(first, second):
        config = [account(first.url, "first-key"), account(second.url, "second-key")]
        async with make_gateway(openai_jumper_configs=config) as client:
            for _ in range(3):
                assert (await chat(client, stream=stream))[0] == 200
            assert (len(first.calls), len(second.calls)) == (1, 3)
            assert first.calls[0].headers["authorization"] == "Bearer first-key"
            resting, _ = client.gateway.jumpers
            now = client.gateway.clock()
            assert rest - 2 < resting.rests_until - now <= rest
            second.refusal = refusal
            status, headers, body = await chat(client)
            assert status == 503 and int(headers["retry-after"]) <= rest
            assert b"key" not in body.replace(b"its key is not accepted", b"")
            async with client.session.get("/status") as response:
                shown = await response.text()
                assert "first-key" not in shown and "second-key" not in shown


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_wrong_with_the_request_is_told(make_gateway: MakeGateway, stream: bool) -> None:
    refusal = unprocessable("no such thing", param="messages", code="odd")
    first, second = Stub(model="fake", refusal=refusal), Stub(model="fake")
    async with stubs(first, second):
        config = [account(first.url), account(second.url, "other")]
        async with make_gateway(openai_jumper_configs=config) as client:
            status, _, body = await chat(client, stream=stream)
            assert (status, json.loads(body)) == (422, refusal.response().model_dump())
            assert not second.calls


@pytest.mark.parametrize(
    ("said", "message", "code"),
    [
        (b'{"error": {"message": "too long", "type": 1, "param": ["a"], "code": 400}}', "too long", "400"),
        (b'{"message": "too long", "code": null}', "too long", None),
        (b'{"error": {}}', "Error code: 400", None),
        (b"too long", "too long", None),
        (b"", "Error code: 400", None),
    ],
)
async def test_endpoints_have_errors_of_many_shapes(
    make_gateway: MakeGateway, said: bytes, message: str, code: str | None
) -> None:
    endpoint = Stub(raw=b"HTTP/1.1 400 X\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said))
    async with stubs(endpoint), make_gateway(openai_jumper_configs=[account(endpoint.url)]) as client:
        status, _, body = await chat(client)
        expected = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        assert (status, json.loads(body)["error"]) == (400, expected)


@pytest.mark.parametrize("value", ["sk-ключ", "sk-key\n", "sk key", "\tkey"])
@pytest.mark.parametrize("field", ["api_key", "org_id"])
def test_what_no_header_can_carry_is_no_key(field: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"openai_jumper_configs": [account("http://a") | {field: value}]}))
    with pytest.raises(ConfigError, match=rf"openai_jumper_configs\[0\]\.{field}.*visible ASCII") as refused:
        load_config(path, GatewayConfig)
    assert "key" not in str(refused.value).replace("api_key", "")


async def test_an_endpoint_that_dies(make_gateway: MakeGateway) -> None:
    """Before the first byte the next account answers; later the stream ends with an error event."""
    first, second = Stub(model="fake", die_after=0), Stub(model="fake")
    async with stubs(first, second):
        config = [account(first.url), account(second.url, "other")]
        async with make_gateway(openai_jumper_configs=config) as client:
            assert (await chat(client))[0] == 200
            second.die_after = 3
            status, _, body = await chat(client, stream=True)
            assert status == 200 and b"event: error\ndata: {" in body


async def test_a_client_that_leaves_ends_the_account_s_work(make_gateway: MakeGateway) -> None:
    endpoint = Stub(model="fake", seconds_per_token=0.05)
    async with stubs(endpoint), make_gateway(openai_jumper_configs=[account(endpoint.url)]) as client:
        request = asyncio.create_task(chat(client, stream=True))
        while not endpoint.live:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        request.cancel()
        async with asyncio.timeout(1.5):
            while endpoint.live:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        (known,) = client.gateway.jumpers
        assert not known.load.leases and known.load.tokens == 0


def test_the_least_used_account_is_next() -> None:
    def made(name: str, used: int) -> Account:
        config = OpenAIJumperConfig.model_validate({"api_key": name})
        return Account(name, config, openai.AsyncOpenAI(api_key=name), tokens_used=used)

    a, b, c = made("a", 10), made("b", 20), made("c", 15)
    assert pick_account([a, b, c], (), 0.0) is a
    with a.load.lease(50, 1, lambda: None):
        assert pick_account([a, b, c], (), 0.0) is c
        assert pick_account([a, b, c], {c}, 0.0) is b
    a.rest(0.0, None, "x")
    assert pick_account([a, b], (), 0.5) is b and pick_account([a], (), 0.5) is None
    a.rest(0.0, None, "x")
    assert a.rests_until == 2.0
    assert pick_account([a], (), 2.0) is a
