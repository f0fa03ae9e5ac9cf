"""Streams: their events, checkpoints, continuation on a peer, failure and cancellation."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import yarl

from protocol import sse
from protocol.completion import CompletionResponse
from protocol.openai_answers import ChatCompletionChunk, OpenAICompletionResponse
from tests.api.fake import REPLY, FakeService
from tests.serving import eventually

ROUTES: dict[str, dict[str, Any]] = {
    "/completion/v2": {"prompt": "Hi", "generation_config": {"max_new_tokens": 100}},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 100},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
}
MODELS: dict[str, type[CompletionResponse] | type[OpenAICompletionResponse] | type[ChatCompletionChunk]] = {
    "/completion/v2": CompletionResponse,
    "/v1/completions": OpenAICompletionResponse,
    "/v1/chat/completions": ChatCompletionChunk,
}
SAMPLED: dict[str, dict[str, Any]] = {
    "/completion/v2": {"generation_config": {"max_new_tokens": 100, "n": 3, "do_sample": True}},
    "/v1/completions": {"n": 3, "seed": 1, "logprobs": 1},
    "/v1/chat/completions": {"n": 3, "seed": 1, "logprobs": True, "top_logprobs": 1},
}

pytestmark = pytest.mark.parametrize("route", ROUTES)


async def stream(http: aiohttp.ClientSession, route: str, headers: dict[str, str], **body: Any) -> bytes:
    body = {"model": "fake", "stream": True, **ROUTES[route], **body}
    async with http.post(route, json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.headers["content-type"].startswith("text/event-stream")
        return await response.read()


def payloads(data: bytes) -> list[bytes]:
    return [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")]


def text_of(choice: dict[str, Any]) -> str:
    return str(choice["delta"].get("content", "") if "delta" in choice else choice["text"])


async def test_events_join_to_the_answer(
    http: aiohttp.ClientSession, service: FakeService, route: str
) -> None:
    *chunks, done = payloads(await stream(http, route, {}))
    assert done == b"[DONE]"
    for chunk in chunks:
        MODELS[route].model_validate_json(chunk)
    events = [json.loads(chunk) for chunk in chunks]
    choices = [choice for event in events for choice in event["choices"]]
    assert "".join(map(text_of, choices)) == REPLY
    assert "\ufffd" not in "".join(map(text_of, choices))
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    if "chat" in route:
        role, *choices = choices
        assert role["delta"] == {"role": "assistant", "content": ""} and role["finish_reason"] is None
        assert all("role" not in choice["delta"] for choice in choices)
    assert len(choices) < len(service.reply)  # half characters were held back


async def test_usage_at_the_end(http: aiohttp.ClientSession, service: FakeService, route: str) -> None:
    native = route == "/completion/v2"
    options = {} if native else {"stream_options": {"include_usage": True}}
    *events, last = map(json.loads, payloads(await stream(http, route, {}, **options))[:-1])
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(service.reply)
    assert last["usage"]["prompt_tokens"] == len(service.jobs[0].prompt_token_ids)
    assert all(event.get("usage") is None for event in events)
    assert native or all("usage" in event for event in events)


async def test_usage_in_every_chunk(http: aiohttp.ClientSession, service: FakeService, route: str) -> None:
    if route == "/completion/v2":
        pytest.skip("the native route has no stream options")
    options = {"include_usage": True, "continuous_usage_stats": True}
    data = await stream(http, route, {"x-stream-checkpoint": "1"}, stream_options=options)
    told = [json.loads(payload)["usage"]["completion_tokens"] for payload in payloads(data)[:-1]]
    sizes = [len(ids) for _, ids, _ in sse.read_checkpoints(data)]
    role = [0] if "chat" in route else []
    assert told == [*role, *itertools.accumulate(sizes), len(service.reply)]


async def test_no_usage_unless_asked_for(http: aiohttp.ClientSession, route: str) -> None:
    if route == "/completion/v2":
        pytest.skip("the native route always reports usage")
    events = map(json.loads, payloads(await stream(http, route, {}))[:-1])
    assert all("usage" not in event and event["choices"] for event in events)


async def test_checkpoints_cover_every_token(
    http: aiohttp.ClientSession, service: FakeService, route: str
) -> None:
    data = await stream(http, route, {"x-stream-checkpoint": "1"})
    checkpoints = list(sse.read_checkpoints(data))
    assert list(itertools.chain.from_iterable(ids for _, ids, _ in checkpoints)) == service.reply
    assert [finished for _, _, finished in checkpoints] == [False] * (len(checkpoints) - 1) + [True]
    plain = await stream(http, route, {"x-request-id": "a"})
    assert b": tokens" not in plain


@pytest.mark.parametrize("stop", [[], ["forty", "never this"]])
async def test_resumed_anywhere_the_bytes_are_the_same(
    http: aiohttp.ClientSession, service: FakeService, route: str, stop: list[str]
) -> None:
    headers = {"x-stream-checkpoint": "1", "x-request-id": "abc"}
    service.cached_tokens = 1
    options = dict(SAMPLED[route])
    if route == "/completion/v2":
        options["generation_config"] = options["generation_config"] | {"stop": stop, "logprobs": 1}
    else:
        usage = {"include_usage": True, "continuous_usage_stats": bool(stop)}
        options |= {"stop": stop, "stream_options": usage}
    whole = await stream(http, route, headers, **options)
    created = json.loads(payloads(whole)[0]).get("created", 0)
    events = [event + b"\n\n" for event in whole.split(b"\n\n")[:-1]]
    assert len(events) > 20
    cuts = [cut for cut in range(1, len(events) - 1, 3) if not events[cut - 1].startswith(b": more")]
    for cut in cuts:  # what ends a stream is written in one piece, as is what belongs together
        begun = b"".join(events[:cut])
        choices: list[dict[str, Any]] = [{"token_ids": [], "finished": False} for _ in range(3)]
        for index, ids, finished in sse.read_checkpoints(begun):
            choices[index]["token_ids"] += ids
            choices[index]["finished"] = finished
        resume = {"created": created, "choices": choices, "cached_tokens": sse.read_cached(begun)}
        service.cached_tokens = 2  # that of another server
        rest = await stream(http, route, headers, resume=resume, **options)
        assert begun + rest == whole


async def test_failure_before_the_first_event_is_an_error_answer(
    http: aiohttp.ClientSession, service: FakeService, route: str
) -> None:
    service.fail_after = 0
    body = {"model": "fake", "stream": True, **ROUTES[route]}
    async with http.post(route, json=body) as response:
        assert response.status == 503
        assert response.headers["retry-after"] == "1"
        assert (await response.json())["error"]["code"] == "engine_lost"


async def test_failure_later_is_an_error_event(
    http: aiohttp.ClientSession, service: FakeService, route: str
) -> None:
    service.fail_after = 3
    *_, last, end = (await stream(http, route, {})).split(b"\n\n")
    assert end == b""
    name, data = last.split(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: "))["error"]["code"] == "engine_lost"


async def test_unexpected_failure_tells_no_secrets(
    http: aiohttp.ClientSession, service: FakeService, route: str
) -> None:
    service.failure = RuntimeError("secret")
    service.fail_after = 3
    data = await stream(http, route, {})
    assert b"event: error" in data and b"internal_error" in data and b"secret" not in data
    service.fail_after = 0
    body = {"model": "fake", **ROUTES[route]}
    async with http.post(route, json=body) as response:
        assert response.status == 500
        assert "secret" not in await response.text()


@pytest.mark.parametrize("streamed", [True, False])
async def test_client_gone_cancels(
    http: aiohttp.ClientSession, service: FakeService, route: str, streamed: bool
) -> None:
    service.seconds_per_token = 0.2
    body = {"model": "fake", "stream": streamed, **ROUTES[route]}
    request = asyncio.create_task(http.post(route, json=body))
    await eventually(lambda: len(service.live) == 1)
    if streamed:
        (await request).close()
    else:
        request.cancel()
    await eventually(lambda: not service.live)


async def test_an_id_that_comes_again_stands_for_another_job(
    http: aiohttp.ClientSession, service: FakeService, route: str
) -> None:
    """The engine may still speak of the first when the second begins."""
    body = {"model": "fake", **ROUTES[route]}
    for _ in range(2):
        async with http.post(route, json=body, headers={"x-request-id": "mine"}) as response:
            assert response.status == 200 and response.headers["x-request-id"] == "mine"
    first, second = (job.request_id for job in service.jobs)
    assert first != second


@pytest.mark.parametrize("request_id", ["mine", "a/b", "/", "?%#"])
async def test_delete_cancels(
    http: aiohttp.ClientSession, service: FakeService, route: str, request_id: str
) -> None:
    service.seconds_per_token = 0.01
    body = {"model": "fake", **ROUTES[route]}
    request = asyncio.create_task(http.post(route, json=body, headers={"x-request-id": request_id}))
    await eventually(lambda: len(service.live) == 1)
    path = yarl.URL(f"/requests/{quote(request_id, safe='')}", encoded=True)
    async with http.delete(path) as response:
        assert response.status == 204
    async with await request as response:
        assert response.status == 409
        assert (await response.json())["error"]["code"] == "cancelled"
    async with http.delete(path) as response:
        assert response.status == 404
