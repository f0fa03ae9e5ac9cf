"""The native completion routes."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from protocol.completion import CompletionResponse
from server.api.app import create_app
from server.text.tokenizer import Tokenizer
from tests.api.fake import REPLY, FakeService
from tests.serving import serving

WHOLE = {"generation_config": {"max_new_tokens": 100}}


async def complete(http: aiohttp.ClientSession, **body: object) -> CompletionResponse:
    async with http.post("/completion/v2", json={"model": "fake", "prompt": "Hi", **body}) as response:
        assert response.status == 200, await response.text()
        return CompletionResponse.model_validate_json(await response.read())


async def test_answers_with_text_and_usage(http: aiohttp.ClientSession, service: FakeService) -> None:
    answer = await complete(http, **WHOLE)
    assert [choice.model_dump(exclude_none=True) for choice in answer.choices] == [
        {"text": REPLY, "index": 0, "finish_reason": "stop"}
    ]
    prompt = service.tokenizer.encode("Hi")
    assert service.jobs[0].prompt_token_ids == prompt
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(service.reply)
    assert answer.usage.total_tokens == len(prompt) + len(service.reply)


async def test_an_answer_has_only_the_fields_asked_for(http: aiohttp.ClientSession) -> None:
    async with http.post("/completion/v2", json={"model": "fake", "prompt": "Hi"}) as response:
        body = await response.json()
    assert set(body) == {"choices", "usage"}
    assert set(body["choices"][0]) == {"text", "index", "finish_reason"}


async def test_default_length_is_32_tokens(http: aiohttp.ClientSession, service: FakeService) -> None:
    answer = await complete(http)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 32


async def test_prompt_as_token_ids_and_token_ids_returned(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    answer = await complete(http, prompt=[5, 6, 7], return_token_ids=True, **WHOLE)
    assert service.jobs[0].prompt_token_ids == [5, 6, 7]
    assert answer.choices[0].token_ids == service.reply


async def test_several_answers_come_in_order(http: aiohttp.ClientSession, service: FakeService) -> None:
    config = {"n": 3, "do_sample": True, "max_new_tokens": 5}
    answer = await complete(http, generation_config=config, return_token_ids=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.token_ids for choice in answer.choices] == [service.reply[i : i + 5] for i in range(3)]


async def test_logprobs(http: aiohttp.ClientSession, service: FakeService) -> None:
    answer = await complete(http, generation_config={"max_new_tokens": 9, "logprobs": 2})
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 9
    assert logprobs.tokens[:3] == ["H", "e", "ll"]
    assert logprobs.text_offset[:4] == [0, 1, 2, 4]
    assert logprobs.top_logprobs[0] == {"H": -0.5, "#": -9999.0}  # minus infinity is not JSON


async def test_priority_reaches_the_service(http: aiohttp.ClientSession, service: FakeService) -> None:
    await complete(http, priority=7)
    assert service.jobs[0].priority == 7


async def test_body_is_json_whatever_its_content_type(http: aiohttp.ClientSession) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}  # what curl -d sends
    data = '{"model": "fake", "prompt": "Hi"}'
    async with http.post("/completion/v2", data=data, headers=form) as response:
        assert response.status == 200


async def test_load_and_request_id_come_back(http: aiohttp.ClientSession) -> None:
    headers = {"x-request-id": "abc"}
    body = {"model": "fake", "prompt": "Hi"}
    async with http.post("/completion/v2", json=body, headers=headers) as response:
        assert response.headers["x-server-load"] == "17"
        assert response.headers["x-request-id"] == "abc"


async def test_static_batching_has_its_own_route_and_no_streams(tokenizer: Tokenizer) -> None:
    service = FakeService(tokenizer, "static_batching")
    body = {"model": "fake", "prompt": "Hi"}
    with serving(create_app(service)) as url:
        async with aiohttp.ClientSession(url) as http:
            async with http.post("/completion/v1", json=body) as response:
                assert response.status == 200
            async with http.post("/completion/v2", json=body) as response:
                assert response.status == 404
            for route, status in (("/completion/v1", 422), ("/v1/completions", 400)):
                async with http.post(route, json=body | {"stream": True}) as response:
                    assert response.status == status
                    assert (await response.json())["error"]["param"] == "stream"


@pytest.mark.parametrize("characters", [1_000, 50_000])  # tokenised in the event loop, in a thread
async def test_prompt_too_long(http: aiohttp.ClientSession, service: FakeService, characters: int) -> None:
    service.model_max_length = characters // 3
    prompt = ("a b " * characters)[:characters]
    async with http.post("/completion/v2", json={"model": "fake", "prompt": prompt}) as response:
        assert response.status == 422
        error = (await response.json())["error"]
    assert error["code"] == "context_length_exceeded"
    for number in (len(service.tokenizer.encode(prompt)), 32, service.model_max_length):
        assert str(number) in error["message"]


@pytest.mark.parametrize(
    ("route", "field"),
    [
        ("/completion/v2", {"prompt": "TEXT"}),
        ("/v1/completions", {"prompt": ["Hi", "TEXT"]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "TEXT"}]}),
    ],
)
async def test_text_that_cannot_fit_is_not_tokenised(
    http: aiohttp.ClientSession,
    service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    route: str,
    field: dict[str, Any],
) -> None:
    """Tokenising megabytes takes seconds and gigabytes."""
    service.model_max_length = 100
    hf = service.tokenizer.hf
    most = 2 * service.model_max_length * max(len(hf.decode([token])) for token in range(len(hf)))
    tokenised: list[str] = []
    encode = service.tokenizer.encode

    def recording(text: str, *, special: bool = True) -> list[int]:
        tokenised.append(text)
        return encode(text, special=special)

    monkeypatch.setattr(service.tokenizer, "encode", recording)
    for text, is_tokenised in (("a" * (most // 2), True), ("a" * (most + 1), False)):
        tokenised.clear()
        body = json.dumps({"model": "fake", **field}).replace("TEXT", text)
        async with http.post(route, data=body.encode()) as response:
            assert response.status == (400 if route.startswith("/v1/") else 422)
            error = (await response.json())["error"]
        assert error["code"] == "context_length_exceeded" and error["param"] == next(iter(field))
        assert any(text in known for known in tokenised) is is_tokenised
