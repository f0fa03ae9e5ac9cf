"""How what is told of prompts is written, whole and in streams that go on elsewhere."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from client.relay.resume import Journal, resumed_body
from protocol.completion import CompletionResponse
from protocol.openai_answers import ChatCompletionResponse, OpenAICompletionResponse
from tests.api.chats import ask, read_stream, refused
from tests.api.fake import FakeService

ROUTE = "/v1/completions"
PROMPT = "The old 你好"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "prompt": PROMPT, "seed": 3, **fields}


@pytest.mark.parametrize("top", [0, 1, 2])
async def test_an_echo(url: str, service: FakeService, top: int) -> None:
    answer = await ask(url, ROUTE, body(echo=True, logprobs=top, max_tokens=3))
    OpenAICompletionResponse.model_validate(answer)
    (choice,), (job,) = answer["choices"], service.jobs
    ids, logprobs = job.prompt_token_ids, choice["logprobs"]
    assert job.config.prompt_logprobs == top
    assert logprobs["token_logprobs"] == [None, *(-float(i) for i in range(1, len(ids))), -0.5, -0.5, -0.5]
    assert logprobs["tokens"][0] == "<s>" and logprobs["top_logprobs"][0] is None
    assert all(len(one) == min(top + 1, 2) for one in logprobs["top_logprobs"][1 : len(ids)])
    assert choice["text"].startswith(PROMPT) and "prompt_logprobs" not in choice
    for text, place in zip(logprobs["tokens"][1:], logprobs["text_offset"][1:], strict=True):
        assert choice["text"].startswith(text, place) or text.startswith("bytes:")
    assert logprobs["text_offset"][len(ids)] == len(PROMPT)


async def test_nothing_but_the_echo(url: str, service: FakeService) -> None:
    fields = body(prompt=["one", "two two"], n=2, echo=True, logprobs=1, max_tokens=0)
    answer = await ask(url, ROUTE, fields)
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == ["one", "one", "two two", "two two"] and answer["usage"]["completion_tokens"] == 0
    for choice, job in zip(answer["choices"][::2], service.jobs, strict=True):
        assert len(choice["logprobs"]["tokens"]) == len(job.prompt_token_ids)
        assert choice["finish_reason"] == "length"
    assert answer["choices"][0]["logprobs"] == answer["choices"][1]["logprobs"]
    stream = await read_stream(url, ROUTE, fields)
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: {")]
    assert [event["choices"][0]["logprobs"] for event in events] == [
        choice["logprobs"] for choice in answer["choices"]
    ]


@pytest.mark.parametrize("route", [ROUTE, "/v1/chat/completions", "/completion/v2"])
async def test_of_any_route(url: str, service: FakeService, route: str) -> None:
    fields: dict[str, Any] = {"model": "fake", "prompt_logprobs": 1}
    if route == ROUTE:
        fields["prompt"] = PROMPT
    elif route == "/completion/v2":
        fields = {"model": "fake", "prompt": PROMPT, "generation_config": {"prompt_logprobs": 1}}
    else:
        fields["messages"] = [{"role": "user", "content": PROMPT}]
    answer = await ask(url, route, fields)
    ids = service.jobs[0].prompt_token_ids
    if route == "/v1/chat/completions":
        ChatCompletionResponse.model_validate(answer)
        told = answer["prompt_logprobs"]
    else:
        (OpenAICompletionResponse if route == ROUTE else CompletionResponse).model_validate(answer)
        told = answer["choices"][0]["prompt_logprobs"]
    assert told[0] is None and len(told) == len(ids)
    for place, (token, line) in enumerate(zip(ids[1:], told[1:], strict=True), start=1):
        assert line[str(token)]["logprob"] == -place and line[str(token)]["rank"] in (1, 2)
        assert set(line) == {"5", str(token)}
    stream = await read_stream(url, route, fields | {"stream": True})
    assert stream.count(b'"prompt_logprobs"') == 1


@pytest.mark.parametrize("n", [1, 3])
async def test_a_stream_goes_on_byte_for_byte(url: str, service: FakeService, n: int) -> None:
    """Whether or not all answers had begun, so that the prompt is to be scored again or not."""
    fields = body(echo=True, logprobs=1, prompt_logprobs=2, n=n, max_tokens=9)

    def without_time(data: bytes) -> bytes:
        return re.sub(rb'"created":\d+', b'"created":0', data)

    whole = without_time(await read_stream(url, ROUTE, fields))
    told = await read_stream(url, ROUTE, fields, checkpoints=True)
    scored = set()
    for place in (match.end() for match in re.finditer(rb"\n\n", told)):
        cut = Journal()
        came, _ = cut.feed(told[:place])
        if not came or cut.done:
            continue
        again = json.loads(resumed_body(fields, cut.resume(n, 7), checks_weights=True))
        cut.new_connection()
        rest, _ = cut.feed(await read_stream(url, ROUTE, again, checkpoints=True))
        assert without_time(came + rest) == whole
        scored.add(service.jobs[-1].config.prompt_logprobs)
    assert scored == ({None} if n == 1 else {None, 2})


async def test_a_prompt_that_leaves_no_room(url: str, service: FakeService) -> None:
    prompt = [5] * service.model_max_length
    answer = await ask(url, ROUTE, body(prompt=prompt, echo=True, max_tokens=0))
    assert answer["choices"][0]["finish_reason"] == "length"
    error = await refused(url, ROUTE, body(prompt=prompt, echo=True, max_tokens=0, logprobs=1))
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True, "logprobs": 20}, "echo"),
        ({"prompt_logprobs": 20}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "n": 21}, "prompt_logprobs"),
    ],
)
async def test_more_than_an_answer_holds(
    url: str, service: FakeService, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], param: str
) -> None:
    monkeypatch.setattr("server.api.jobs.MAX_PROMPT_REPORTS", 20 * 21)
    error = await refused(url, ROUTE, body(prompt=[5] * 21, **fields))
    assert error["param"] == param and "at most 420" in error["message"]
    await ask(url, ROUTE, body(prompt=[5] * 20, **fields))
