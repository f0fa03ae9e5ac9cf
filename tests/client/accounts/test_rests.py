"""How long an account rests, and what it does not rest for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from client.accounts.account import MAX_REFUSED_MODELS, Account, pick_account
from client.config import GatewayConfig, OpenAIJumperConfig
from protocol.errors import ApiError
from tests.client.conftest import FAST, MakeGateway
from tests.client.openai_calls import account, chat
from tests.client.stub import Stub, stubs
from tests.serving import eventually
from utils.config import ConfigError


def made(name: str) -> Account:
    config = OpenAIJumperConfig.model_validate({"api_key": name})
    return Account(name, config, openai.AsyncOpenAI(api_key=name))


@pytest.mark.parametrize(
    "refusal",
    [
        ApiError(403, "Project does not have access to model `fake`", type="x", code="model_not_found"),
        ApiError(404, "The model `fake` does not exist", type="x", code="model_not_found"),
        ApiError(403, "the priority is too high", type="x", code="priority_not_allowed"),
    ],
    ids=lambda refusal: f"{refusal.status} {refusal.body.code}",
)
async def test_an_account_that_refuses_a_model_answers_for_others(
    make_gateway: MakeGateway, refusal: ApiError
) -> None:
    first, second = Stub(model="fake", refusal=refusal), Stub(model="fake")
    async with stubs(first, second):
        config = [account(server.url, str(i)) for i, server in enumerate((first, second))]
        async with make_gateway(openai_jumper_configs=config) as client:
            for _ in range(3):
                assert (await chat(client))[0] == 200
            assert (len(first.calls), len(second.calls)) == (1, 3)
            first.refusal, first.model, second.model = None, "other", "none of these"
            assert (await chat(client, model="other"))[0] == 200


async def test_what_all_accounts_refuse_is_told_and_lets_none_rest(make_gateway: MakeGateway) -> None:
    refusal = ApiError(403, "not allowed to sample", type="x", code="not_allowed")
    servers = [Stub(model="fake", refusal=refusal) for _ in range(4)]
    async with stubs(*servers):
        config = [account(server.url, str(i)) for i, server in enumerate(servers)]
        async with make_gateway(openai_jumper_configs=config) as client:
            for _ in range(2):
                status, _, body = await chat(client)
                assert (status, json.loads(body)["error"]["code"]) == (403, "not_allowed")
            assert [len(server.calls) for server in servers] == [2] * 4
            servers[-1].refusal = None  # however many refuse, each is asked
            assert (await chat(client))[0] == 200


@pytest.mark.parametrize(
    "refusal",
    [
        ApiError(402, "Insufficient credits", type="x"),
        ApiError(429, "You exceeded your current quota", type="x", code="insufficient_quota"),
    ],
    ids=lambda refusal: str(refusal.status),
)
async def test_an_account_without_credit_rests_long(make_gateway: MakeGateway, refusal: ApiError) -> None:
    first, second = Stub(model="fake", refusal=refusal), Stub(model="fake")
    async with stubs(first, second):
        config = [account(server.url, str(i)) for i, server in enumerate((first, second))]
        async with make_gateway(openai_jumper_configs=config) as client:
            assert (await chat(client))[0] == 200
            resting = next(iter(client.gateway.jumpers))
            assert resting.rests_until - client.gateway.clock() > 500


async def test_refusals_at_one_time_are_one_refusal(make_gateway: MakeGateway) -> None:
    slow = ApiError(429, "slow", type="rate_limit")
    first, second = Limited(model="fake", refusal=slow), Stub(model="fake")
    async with stubs(first, second):
        config = [account(first.url, "1"), account(second.url, "2")]
        async with make_gateway(openai_jumper_configs=config) as client:
            resting, other = client.gateway.jumpers
            other.tokens_used = 10**6  # all go to the first one
            requests = [asyncio.create_task(chat(client)) for _ in range(7)]
            await eventually(lambda: len(first.calls) == 7)
            first.gate.set()
            assert {status for status, _, _ in await asyncio.gather(*requests)} == {200}
            assert resting.failures == 1 and resting.rests_until - client.gateway.clock() <= 1.0


class Limited(Stub):
    """Answers all at once, when told to."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.gate = asyncio.Event()

    async def _complete(self, call: Any, writer: asyncio.StreamWriter) -> bool:
        await self.gate.wait()
        return await super()._complete(call, writer)


def test_what_was_sent_before_a_rest_says_nothing_of_the_time_after() -> None:
    one = made("one")
    one.rest(10.0, None, "x", sent_at=9.0)
    one.rest(10.5, None, "x", sent_at=9.5)
    assert (one.failures, one.rests_until) == (1, 11.0)
    one.rest(10.6, 30.0, "the same, with a hint", sent_at=9.6)
    assert (one.failures, one.rests_until) == (1, 40.6)
    one.succeeded(5, sent_at=9.9)  # an answer that had begun before
    assert (one.failures, one.last_error, one.tokens_used) == (1, "x", 5)
    one.rest(41.0, None, "x", sent_at=40.7)
    assert (one.failures, one.rests_until) == (2, 43.0)
    one.succeeded(5, sent_at=43.5)
    assert (one.failures, one.last_error) == (0, None)


def test_refused_models_are_bounded_and_run_out() -> None:
    one = made("one")
    for number in range(2 * MAX_REFUSED_MODELS):
        one.refuse(0.0, f"model {number}", "x")
    assert pick_account([one], (), 1.0, "model 0") is one
    assert pick_account([one], (), 1.0, f"model {2 * MAX_REFUSED_MODELS - 1}") is None
    assert pick_account([one], (), 601.0, f"model {2 * MAX_REFUSED_MODELS - 1}") is one
    assert pick_account([one], (), 1.0) is one


async def test_a_reload_keeps_what_accounts_have_under_way(make_gateway: MakeGateway) -> None:
    endpoint = Stub(model="fake", seconds_per_token=0.02)
    async with stubs(endpoint):
        config = {"openai_jumper_configs": [account(endpoint.url)]}
        async with make_gateway(**config) as client:
            request = asyncio.create_task(chat(client, max_tokens=20))
            await eventually(lambda: endpoint.live == 1)
            client.gateway.configure(GatewayConfig.model_validate(FAST | config))
            (known,) = client.gateway.jumpers
            assert known.load.tokens > 0
            assert (await request)[0] == 200
            assert known.tokens_used == 21 and known.load.tokens == 0


async def test_an_account_listed_twice_is_two(make_gateway: MakeGateway) -> None:
    config = {"openai_jumper_configs": [account("http://a"), account("http://a")]}
    async with make_gateway(**config) as client:
        client.gateway.configure(GatewayConfig.model_validate(FAST | config))
        one, two = client.gateway.jumpers
        assert one is not two


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "HTTP_PROXY"])
async def test_the_proxy_of_the_environment_is_for_accounts_alone(
    make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """httpx reads it when a client is made, and takes no SOCKS without a package of its own."""
    for other in ("ALL_PROXY", "all_proxy", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "socks5://127.0.0.1:1")
    server = Stub()
    async with stubs(server), make_gateway([server]) as client:
        await client.complete()
        config = client.gateway.settings.config
        accounts = FAST | {"openai_jumper_configs": [account("http://a")]}
        with pytest.raises(ConfigError, match=r"openai_jumper_configs: .*ALL_PROXY"):
            client.gateway.configure(GatewayConfig.model_validate(accounts))
        assert client.gateway.settings.config is config and len(list(client.gateway.registry)) == 1
        await client.complete()
