"""What clients of OpenAI's API look for in answers and errors."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from protocol.openai_answers import ChatCompletionChunk, ChatCompletionResponse, OpenAICompletionResponse
from tests.api.fake import REPLY, FakeService

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"prompt": "Hi"}
ROUTES: dict[str, dict[str, Any]] = {"/v1/completions": TEXT, "/v1/chat/completions": CHAT}


async def post(http: aiohttp.ClientSession, route: str, **fields: Any) -> tuple[int, Any]:
    async with http.post(route, json={"model": "fake", **ROUTES.get(route, TEXT), **fields}) as response:
        return response.status, await response.json()


async def events(http: aiohttp.ClientSession, route: str, **fields: Any) -> list[Any]:
    body = {"model": "fake", "stream": True, **ROUTES[route], **fields}
    async with http.post(route, json=body) as response:
        lines = (await response.read()).splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]


@pytest.mark.parametrize("route", ROUTES)
async def test_every_answer_names_the_weights(
    http: aiohttp.ClientSession, service: FakeService, route: str
) -> None:
    _, answer = await post(http, route)
    assert answer["system_fingerprint"] == f"fp_{service.fingerprint}"
    assert {event["system_fingerprint"] for event in await events(http, route)} == {
        f"fp_{service.fingerprint}"
    }
    service.fingerprint = None
    assert (await post(http, route))[1]["system_fingerprint"] is None


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("route", ROUTES)
async def test_tokens_are_told_where_they_are_wanted(
    http: aiohttp.ClientSession, service: FakeService, route: str, n: int
) -> None:
    fields = {"return_token_ids": True, "n": n, "seed": 1, "max_tokens": 20}
    _, answer = await post(http, route, **fields)
    model = ChatCompletionResponse if "chat" in route else OpenAICompletionResponse
    model.model_validate(answer)
    prompt = service.jobs[0].prompt_token_ids
    told = [answer] if "chat" in route else answer["choices"]
    assert all(one["prompt_token_ids"] == prompt for one in told)
    expected = {i: service.reply[i:][:20] for i in range(n)}
    assert {choice["index"]: choice["token_ids"] for choice in answer["choices"]} == expected
    streamed: dict[int, list[int]] = {i: [] for i in range(n)}
    first: dict[int, Any] = {}
    for event in await events(http, route, **fields):
        if "chat" in route:
            ChatCompletionChunk.model_validate(event)
        for choice in event["choices"]:
            streamed[choice["index"]] += choice["token_ids"]
            first.setdefault(choice["index"], event if "chat" in route else choice)
    assert streamed == expected
    assert all(piece["prompt_token_ids"] == prompt for piece in first.values())
    _, plain = await post(http, route)
    assert "token_ids" not in json.dumps(plain)


async def test_the_first_chunk_of_each_answer_of_a_chat_is_its_role(http: aiohttp.ClientSession) -> None:
    seen: dict[int, list[Any]] = {}
    for event in await events(http, "/v1/chat/completions", n=2, seed=1, logprobs=True, max_tokens=200):
        (choice,) = event["choices"]
        seen.setdefault(choice["index"], []).append(choice)
    for index, (role, *rest) in seen.items():
        assert role["delta"] == {"role": "assistant", "content": ""}
        assert role["logprobs"] is None and role["finish_reason"] is None
        assert all(choice["logprobs"] is not None for choice in rest)
        text = "".join(choice["delta"].get("content", "") for choice in rest)
        assert index or text == REPLY


LONG = "x" * 2000
OVERFLOWS: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"prompt": [5] * 256}, "prompt"),
    ("/v1/completions", {"prompt": [5] * 250, "max_tokens": 20}, "max_tokens"),
    ("/v1/completions", {"prompt": "x" * 90_000}, "prompt"),
    ("/v1/completions", {"max_tokens": 10**9}, "max_tokens"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}, "messages"),
    ("/v1/chat/completions", {"max_tokens": 10**9}, "max_tokens"),
    ("/v1/chat/completions", {"max_completion_tokens": 10**9}, "max_completion_tokens"),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 10**9}, "max_output_tokens"),
    ("/v1/messages", {**CHAT, "max_tokens": 10**9}, "max_tokens"),
    ("/completion/v2", {"generation_config": {"max_new_tokens": 10**9}}, "generation_config.max_new_tokens"),
]


@pytest.mark.parametrize(("route", "fields", "param"), OVERFLOWS)
async def test_what_does_not_fit_is_told_in_the_words_that_clients_look_for(
    http: aiohttp.ClientSession, service: FakeService, route: str, fields: dict[str, Any], param: str
) -> None:
    """LangChain and LiteLLM look for the message, others for the code."""
    body = {} if route in ("/v1/messages", "/v1/responses") else ROUTES.get(route, TEXT)
    async with http.post(route, json={"model": "fake", **body, **fields}) as response:
        status, answer = response.status, await response.json()
    error = answer["error"]
    assert status == (422 if route == "/completion/v2" else 400)
    assert "This model's maximum context length is 256 tokens" in error["message"]
    assert error["code"] == "context_length_exceeded" and error["param"] == param
    assert error["message"].startswith(f"{param}: ")
