"""How many tokens of a prompt came from the prefix cache, as each API tells it."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from protocol.messages import MessageAnswer
from protocol.openai_answers import ChatCompletionResponse, OpenAICompletionResponse
from protocol.responses_answers import ResponsesAnswer
from tests.api.fake import FakeService

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


async def post(http: aiohttp.ClientSession, route: str, **fields: Any) -> bytes:
    async with http.post(route, json={"model": "fake", **fields}) as response:
        assert response.status == 200, await response.text()
        return await response.read()


async def test_completions_add_up_their_prompts(http: aiohttp.ClientSession, service: FakeService) -> None:
    """Each counts once, however many answers it has."""
    service.cached_tokens = 2
    fields = {"prompt": ["one", "two"], "n": 2, "max_tokens": 4, "seed": 1}
    body = await post(http, "/v1/completions", **fields)
    usage = OpenAICompletionResponse.model_validate_json(body).usage
    assert usage is not None and usage.prompt_tokens_details.cached_tokens == 4
    options = {"include_usage": True, "continuous_usage_stats": True}
    data = await post(http, "/v1/completions", **fields, stream=True, stream_options=options)
    events = [json.loads(line[6:]) for line in data.splitlines() if line.startswith(b"data: {")]
    told = [event["usage"]["prompt_tokens_details"]["cached_tokens"] for event in events]
    assert told == sorted(told) and told[0] == 2 and told[-1] == 4
    assert b": cached" not in data  # for gateways alone


async def test_chats(http: aiohttp.ClientSession, service: FakeService) -> None:
    service.cached_tokens = 3
    answer = ChatCompletionResponse.model_validate_json(await post(http, "/v1/chat/completions", **CHAT))
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_responses(http: aiohttp.ClientSession, service: FakeService) -> None:
    service.cached_tokens = 3
    usage = ResponsesAnswer.model_validate_json(await post(http, "/v1/responses", input="Hi")).usage
    assert usage is not None and usage.input_tokens_details == {"cached_tokens": 3}
    assert usage.input_tokens == len(service.jobs[0].prompt_token_ids)


@pytest.mark.parametrize("stream", [False, True])
async def test_messages_tell_them_apart_from_the_others(
    http: aiohttp.ClientSession, service: FakeService, stream: bool
) -> None:
    """As at Anthropic, whose clients add the two."""
    service.cached_tokens = 3
    body = await post(http, "/v1/messages", max_tokens=8, stream=stream, **CHAT)
    if stream:
        events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: ")]
        told = [events[0]["message"]["usage"], events[-2]["usage"]]
    else:
        told = [MessageAnswer.model_validate_json(body).usage.model_dump()]
    prompt = len(service.jobs[0].prompt_token_ids)
    for usage in told:
        assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (prompt - 3, 3)


async def test_the_native_route_keeps_its_usage(http: aiohttp.ClientSession, service: FakeService) -> None:
    service.cached_tokens = 3
    usage = json.loads(await post(http, "/completion/v2", prompt="Hi"))["usage"]
    assert set(usage) == {"prompt_tokens", "completion_tokens", "total_tokens"}


async def test_a_record_with_more_than_the_prompt_is_refused(http: aiohttp.ClientSession) -> None:
    resume = {"created": 3, "choices": [{}], "cached_tokens": 3}
    body = {"model": "fake", "prompt": [5, 6], "stream": True, "resume": resume}
    async with http.post("/v1/completions", json=body) as response:
        error = (await response.json())["error"]
    assert response.status == 400 and error["message"] == "resume: 3 cached tokens of 2 in prompts"
