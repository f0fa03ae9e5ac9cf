"""Accounts whose endpoint is a server of this stack, refuses, or misbehaves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import openai
import pytest

from client.accounts.account import Account, pick_account
from client.config import GatewayConfig, OpenAIJumperConfig
from client.http.asgi import MAX_HOPS
from protocol.errors import ApiError, unprocessable
from tests.api.fake import REPLY
from tests.client.conftest import MakeGateway
from tests.client.openai_calls import MESSAGES, account, chat, sdk
from tests.client.stub import Stub, stubs
from tests.serving import eventually
from utils.config import ConfigError, load_config


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
        (ApiError(503, "soon", type="server_error", retry_after=20), 20),
        (ApiError(401, "Incorrect API key provided: first-key", type="auth"), 600),
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


BAD_ANSWERS = [
    b"HTTP/1.1 500 X\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    b"HTTP/1.1 200 X\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
    b"HTTP/1.1 204 X\r\n\r\n",
    b"HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n",
    b"garbage\r\n\r\n",
]


@pytest.mark.parametrize("bad", BAD_ANSWERS, ids=["500", "cut", "html", "204", "999", "garbage"])
async def test_what_every_account_fails_at_lets_none_rest(make_gateway: MakeGateway, bad: bytes) -> None:
    """It is the request; where another account answers it, it is the account."""
    servers = [Stub(model="fake", raw=bad), Stub(model="fake", raw=bad)]
    async with stubs(*servers):
        config = [account(server.url, f"key-{i}") for i, server in enumerate(servers)]
        async with make_gateway(openai_jumper_configs=config) as client:
            for _ in range(5):
                status, _, body = await chat(client)
                assert 500 <= status < 600 and json.loads(body)["error"]["message"]
            assert all(len(server.calls) == 5 for server in servers)
            assert all(a.rests_until == 0.0 for a in client.gateway.jumpers)
            servers[1].raw = None
            assert (await chat(client))[0] == 200
            failed, good = client.gateway.jumpers
            assert failed.rests_until > 0.0 == good.rests_until


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
        await eventually(lambda: endpoint.live == 0)
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
    a.rest(0.0, None, "x", sent_at=0.0)
    assert pick_account([a, b], (), 0.5) is b and pick_account([a], (), 0.5) is None
    a.rest(0.0, None, "x", sent_at=0.0)
    assert a.rests_until == 2.0
    assert pick_account([a], (), 2.0) is a
