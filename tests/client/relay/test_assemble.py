"""Whole answers that were made of streams: equal to those that the servers write whole."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from client.relay.assemble import Assembly, NoCompletion
from client.requests.request import read_request
from client.upstream.classify import StreamFailed, of_error
from protocol.errors import queue_timeout
from protocol.openai import StreamOptions
from protocol.sse import DONE, checkpoint, event, group
from server.api.app import create_app
from server.api.chat.calls import CallIds
from server.api.chat.shape import ChatShape
from server.api.logprobs import TextLogprobs
from server.api.service import Delta, Job
from server.api.shapes import (
    Echo,
    Envelope,
    NativeShape,
    PromptTold,
    Shape,
    TextShape,
    TokenCounts,
    TokensTold,
)
from server.text.logprob import TokenLogprob
from server.text.tokenizer import Tokenizer
from tests.api.fake import FakeService, FakeStream
from tests.client.conftest import MakeGateway
from tests.serving import serving

ANSWERS = 3
COUNTS = TokenCounts(prompt=7, cached=4, completion=23)
WORDS = ["", " a", "b", "\n\n", 'say "data: {"', "世界", " 😀", "\\"]

PROMPT = [TokenLogprob(9, -0.5, [(9, -0.5), (8, -1.5)], 1), TokenLogprob(8, -2.0, [(9, -0.5), (5, -1.0)], 4)]
MakeShape = Callable[[Tokenizer, bool], Shape]


def envelope() -> Envelope:
    return Envelope("id", 1234, "m", StreamOptions(include_usage=True))


def text_logprobs(tokenizer: Tokenizer) -> TextLogprobs:
    return TextLogprobs(tokenizer, tokenizer.vocabulary, [[]] * ANSWERS)


def text(t: Tokenizer, *, logprobs: bool = False, echo: bool = False, top: int | None = None) -> TextShape:
    return TextShape(
        envelope(),
        echo=[Echo("p", 7), Echo("p", 7), Echo("q", 8)] if echo else None,
        logprobs=text_logprobs(t) if logprobs else None,
        prompt=PromptTold(t, top),
        tokens=TokensTold([[1, 2], [3]], 2, wanted=top is not None),
    )


def chat(t: Tokenizer, stream: bool, *, logprobs: bool = False, top: int | None = None) -> ChatShape:
    return ChatShape(
        envelope(),
        stream=stream,
        tokenizer=t if logprobs else None,
        ids=CallIds("id", ""),
        prompt=PromptTold(t, top),
        tokens=TokensTold([[1, 2]], ANSWERS, wanted=top is not None),
    )


def native(t: Tokenizer, *, more: bool = False) -> NativeShape:
    return NativeShape(
        token_ids=more, logprobs=text_logprobs(t) if more else None, prompt=PromptTold(t, 2 if more else None)
    )


SHAPES: dict[str, tuple[str, MakeShape]] = {
    "native": ("/completion/v2", lambda t, stream: native(t)),
    "native, all": ("/completion/v2", lambda t, stream: native(t, more=True)),
    "text": ("/v1/completions", lambda t, stream: text(t)),
    "text, logprobs": ("/v1/completions", lambda t, stream: text(t, logprobs=True)),
    "text, echo": ("/v1/completions", lambda t, stream: text(t, echo=True)),
    "text, all": ("/v1/completions", lambda t, stream: text(t, logprobs=True, echo=True, top=1)),
    "chat": ("/v1/chat/completions", lambda t, stream: chat(t, stream)),
    "chat, all": ("/v1/chat/completions", lambda t, stream: chat(t, stream, logprobs=True, top=0)),
}


def an_assembly(route: str = "/completion/v2") -> Assembly:
    body = {"model": "m", "n": ANSWERS, "generation_config": {"n": ANSWERS}}
    return Assembly(read_request("id", route, json.dumps(body).encode()))


def pieces(dice: random.Random) -> list[Delta]:
    """Some of several answers, each with its end."""
    left = [index for index in range(ANSWERS) for _ in range(dice.randint(1, 8))]
    dice.shuffle(left)
    deltas, begun = [], set()
    while left:
        index = left.pop()
        ids = [dice.randrange(3, 300) for _ in range(dice.randint(1, 3))]
        logprobs = [TokenLogprob(i, -dice.random(), [(i, -0.5), (5, float("-inf"))]) for i in ids]
        reason = None if index in left else dice.choice(["stop", "length"])
        told = None if index in begun else PROMPT
        begun.add(index)
        deltas.append(Delta(index, dice.choice(WORDS), ids, reason, logprobs, told))  # type: ignore[arg-type]
    return deltas


def joined(deltas: list[Delta]) -> list[Delta]:
    answers = []
    for index in range(ANSWERS):
        mine = [delta for delta in deltas if delta.index == index]
        ids = [i for delta in mine for i in delta.token_ids]
        logprobs = [entry for delta in mine for entry in delta.logprobs or ()]
        text = "".join(delta.text for delta in mine)
        answers.append(Delta(index, text, ids, mine[-1].finish_reason, logprobs, PROMPT))
    return answers


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", SHAPES)
async def test_events_are_put_together_as_the_server_would(
    tokenizer: Tokenizer, name: str, seed: int
) -> None:
    dice = random.Random(seed)
    route, make = SHAPES[name]
    deltas = pieces(dice)
    shape, begun, stream = make(tokenizer, True), set(), b""
    for delta in deltas:
        comments = checkpoint(delta.index, delta.token_ids, delta.finish_reason is not None)
        stream += group(shape.event(delta, delta.index not in begun, COUNTS), comments=comments)
        begun.add(delta.index)
    stream += event(shape.last_event(COUNTS) or b"") + DONE
    assembly = an_assembly(route)
    while stream:
        size = dice.randint(1, 600)
        events, _ = assembly.journal.feed(stream[:size])
        await assembly.piece(events)
        stream = stream[size:]
    await assembly.end()
    answer = assembly.outcome(None)
    expected = make(tokenizer, False).whole(joined(deltas), COUNTS)
    assert not isinstance(answer, Exception) and answer.status == 200 and answer.is_json
    assert json.loads(answer.body) == json.loads(expected)


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"{oops",
        b'{"choices": 7}',
        b'{"choices": [7]}',
        b'{"choices": [{"index": 9, "text": ""}]}',
        b'{"choices": [{"index": "0", "text": ""}]}',
        b'{"choices": [{"index": 0, "text": 1}]}',
        b'{"choices": [{"index": 0, "delta": "x"}]}',
        b'{"choices": [{"index": 0}]}',
    ],
)
async def test_what_is_no_completion_is_an_error(data: bytes) -> None:
    with pytest.raises(NoCompletion) as failed:
        await an_assembly().piece(event(data))
    assert of_error(failed.value).retry


async def test_an_answer_without_its_end_is_an_error() -> None:
    assembly = an_assembly()
    await assembly.piece(event(b'{"choices": [], "usage": {}}'))
    with pytest.raises(NoCompletion):
        await assembly.end()


def test_answers_that_no_server_has_agreed_to_make_take_no_memory() -> None:
    body = json.dumps({"model": "m", "n": 10**12}).encode()
    Assembly(read_request("id", "/v1/completions", body))


def test_an_error_event_becomes_the_answer_it_would_have_been() -> None:
    error = queue_timeout("too long")
    answer = an_assembly().outcome(StreamFailed(b": tokens 0 1\n" + event(error.json(), name="error")))
    assert not isinstance(answer, Exception)
    assert (answer.status, answer.body, answer.is_json) == (408, error.json(), True)


class Mortal(FakeService):
    """Its engine is lost after a few tokens, again and again."""

    lives = float("inf")

    def submit(self, job: Job) -> FakeStream:
        self.fail_after = self.lives
        return super().submit(job)


@pytest.fixture(scope="module")
def servers(tokenizer: Tokenizer) -> Iterator[dict[str, Mortal]]:
    """Two by their URLs."""
    first, second = Mortal(tokenizer), Mortal(tokenizer)
    with serving(create_app(first)) as one, serving(create_app(second)) as other:
        yield {one: first, other: second}


CASES: list[tuple[str, dict[str, Any]]] = [
    ("/completion/v2", {"prompt": "Hi"}),
    (
        "/completion/v2",
        {
            "prompt": [5, 6],
            "return_token_ids": True,
            "generation_config": {"n": 2, "do_sample": True, "logprobs": 1},
        },
    ),
    ("/v1/completions", {"prompt": ["Hi", "you"], "n": 2, "seed": 1, "echo": True, "max_tokens": 60}),
    (
        "/v1/completions",
        {"prompt": "Hi", "n": 2, "seed": 1, "logprobs": 2, "max_tokens": 60, "stop": ["the end"]},
    ),
    ("/v1/chat/completions", {"stream": False}),
    ("/v1/chat/completions", {"n": 3, "seed": 1, "logprobs": True, "top_logprobs": 2, "stream": None}),
]


@pytest.mark.parametrize(("route", "fields"), CASES)
async def test_an_answer_longer_than_the_engines_live(
    make_gateway: MakeGateway, servers: dict[str, Mortal], route: str, fields: dict[str, Any]
) -> None:
    body = {"model": "fake"} | fields
    if "chat" in route:
        body["messages"] = [{"role": "user", "content": "Who are you?"}]
    if route == "/completion/v2":
        body["generation_config"] = fields.get("generation_config", {}) | {"max_new_tokens": 60}
    async with make_gateway(continuous_batching_server_urls=list(servers), max_attempts=3) as client:
        await client.ready(2)
        client.session.headers["x-request-id"] = "mine"

        async def ask(lives: float) -> dict[str, Any]:
            for server in servers.values():
                server.lives = lives
            async with client.session.post(route, json=body) as response:
                assert response.status == 200, await response.text()
                assert response.content_type == "application/json"
                answer = await response.json()
            assert isinstance(answer, dict)
            answer.pop("created", None)
            return answer

        expected = await ask(float("inf"))
        assert await ask(13) == expected
        assert client.gateway.metrics.resumes >= 2
        assert client.gateway.metrics.first_event.export()[1] == 0
