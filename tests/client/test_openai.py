"""The OpenAI surface through the gateway: the unmodified SDK against servers of this stack."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.api.fake import REPLY, FakeService
from tests.client.conftest import MakeGateway
from tests.client.openai_calls import MESSAGES, sdk
from tests.client.stub import Stub, stubs
from tests.serving import eventually


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
            with pytest.raises(openai.BadRequestError) as refused:
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
        with pytest.raises(openai.BadRequestError, match="stream: answers whole"):
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
