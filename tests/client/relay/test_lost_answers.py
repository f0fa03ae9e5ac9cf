"""Whole answers whose server dies: asked for as streams, which survive it, and put together."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest

from client.relay import assemble
from protocol.errors import (
    ApiError,
    cancelled,
    queue_full,
    queue_timeout,
    unavailable,
    unprocessable,
)
from tests.client.calls import Call, text_of, tokens_of
from tests.client.conftest import MakeGateway
from tests.client.one_life import OneLife
from tests.client.stub import BUSY, Stub, short_lives, stubs
from tests.serving import eventually


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One loss is enough, so that two servers are."""
    monkeypatch.setattr(assemble, "LOSSES", 1)


def text_is_right(answer: dict[str, Any], prompt: str, tokens: int) -> bool:
    return bool(answer["choices"][0]["text"] == text_of(tokens_of(prompt, tokens)))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("route", ["/completion/v2", "/v1/completions", "/v1/chat/completions"])
async def test_a_whole_answer_longer_than_any_server_lives(make_gateway: MakeGateway, route: str) -> None:
    """It is asked for as a stream once it was lost, and put together from what each server made."""
    request: dict[str, Any] = {"model": "m", "prompt": "x", "generation_config": {"max_new_tokens": 40}}
    if route != "/completion/v2":
        request = {"model": "m", "prompt": "x", "max_tokens": 40}
    if "chat" in route:
        request["messages"] = [{"role": "user", "content": request.pop("prompt")}]
    servers = [Stub(die_after=0), Stub(others=BUSY)]
    async with stubs(*servers), make_gateway(servers, max_attempts=3) as client:
        client.session.headers["x-request-id"] = "mine"
        answers = []
        async with short_lives(servers, 3):
            async with client.session.post(route, json=request) as response:
                assert response.headers["content-type"] == "application/json"
                answers.append(await response.json())
            calls = sum(len(server.calls) for server in servers)
        await eventually(lambda: all(server.die_after is not None for server in servers))
        servers[0].die_after = servers[1].die_after = None
        async with client.session.post(route, json=request) as response:
            answers.append(await response.json())
        assert answers[0] == answers[1]
        metrics = client.gateway.metrics
        assert metrics.resumes == calls - 2 > 10  # neither the first attempt nor the first stream
        assert metrics.first_event.export()[1] == 0
        assert metrics.tokens == 2 * 40


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("error", "retry_after", "should_retry"),
    [
        (queue_timeout("too long"), "1", None),
        (cancelled(), None, "false"),
        (unprocessable("no"), None, None),
    ],
    ids=lambda value: str(getattr(value, "status", value)),
)
async def test_an_error_of_the_request_is_the_whole_answer(
    make_gateway: MakeGateway, error: ApiError, retry_after: str | None, should_retry: str | None
) -> None:
    first, peer = Stub(die_after=0), Stub(others=BUSY, stream_error=error)
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        status, headers, body = await client.post("story", 8)
        assert (status, body) == (error.status, error.response().model_dump())
        assert headers["content-type"] == "application/json"
        assert headers.get("retry-after") == retry_after
        assert headers.get("x-should-retry") == should_retry
        assert len(first.calls) == len(peer.calls) == 1


LOST = unavailable("the engine was lost", code="engine_lost")


@dataclass
class Fragile(Stub):
    """A server whose attempts end as `plan` says: its engine is lost before the first token (0) or
    after two (2) of a stream, or it dies itself (d); when the plan is over it answers."""

    plan: str = ""

    async def _complete(self, call: Call, writer: asyncio.StreamWriter) -> bool:
        step = self.plan[len(self.calls) - 1 :][:1]
        self.refusal = LOST if step == "0" else None
        self.stream_error = LOST if step == "2" else None
        self.die_after = 0 if step == "d" else None
        return await super()._complete(call, writer)


@pytest.mark.usefixtures("at_once")
async def test_a_whole_answer_survives_engines_too(make_gateway: MakeGateway) -> None:
    first, peer = Fragile(plan="0"), Fragile(others=BUSY, plan="2")
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        assert text_is_right(await client.complete("story", 8), "story", 8)
        assert not peer.calls[0].body.get("resume")
        (resume,) = [c.body["resume"] for s in (first, peer) for c in s.calls if "resume" in c.body]
        assert [len(choice["token_ids"]) for choice in resume["choices"]] == [2]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("plan", "answered"),
    [("00", True), ("000", False), ("d00", True), ("d000", False), ("0020", True), ("00200", False)],
)
async def test_a_request_takes_few_engines_with_it(
    make_gateway: MakeGateway, plan: str, answered: bool, stream: bool
) -> None:
    """Three since its last token: what loses engines every time would go round for ever."""
    async with stubs(server := Fragile(plan=plan)), make_gateway([server]) as client:
        body = {"model": "m", "prompt": "x", "stream": stream, "generation_config": {"max_new_tokens": 8}}
        async with client.session.post("/completion/v2", json=body) as response:
            answer = await response.text()
        assert ("engine_lost" in answer) == (not answered)
        begun = stream and "2" in plan
        assert response.status == (200 if answered or begun else 503)
        assert response.headers.get("x-should-retry") == ("false" if response.status == 503 else None)
        assert len(server.calls) == len(plan) + answered
        if not answered:
            assert ("event: error" in answer) == begun
        elif stream:
            assert answer.endswith("data: [DONE]\n\n")
        else:
            assert text_is_right(json.loads(answer), "x", 8)


@pytest.mark.usefixtures("at_once")
async def test_a_stream_that_is_no_completion_is_not_asked_for_again(make_gateway: MakeGateway) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    first, odd = Stub(die_after=0), Stub(others=BUSY, raw=head + b"data: {oops\n\n")
    async with stubs(first, odd), make_gateway([first, odd]) as client:
        assert text_is_right(await client.complete("story", 8), "story", 8)
        assert [call.body.get("stream") for call in odd.calls] == [True]
        assert [call.body.get("stream") for call in first.calls] == [None, None]


async def test_a_whole_answer_that_was_lost_once_is_asked_for_whole(make_gateway: MakeGateway) -> None:
    first, peer = Stub(die_after=0), Stub(others=BUSY)
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        assert text_is_right(await client.complete("story", 8), "story", 8)
        assert "stream" not in peer.calls[0].body


async def test_a_whole_answer_of_servers_that_cannot_stream_is_asked_for_again(
    make_gateway: MakeGateway,
) -> None:
    """Wherever the first one was lost."""
    streaming = Stub(die_after=0)
    first, peer = Stub(kind="static_batching"), Stub(kind="static_batching", others=BUSY)
    async with stubs(streaming, first, peer), make_gateway([streaming, first, peer]) as client:
        for route, lost in (("/completion/v1", [first]), ("/v1/completions", [streaming, first])):
            first.die_after = 0
            status, _, body = await client.post("x", 5, route=route)
            assert status == 200 and text_is_right(body, "x", 5)
            for server in (*lost, peer):
                assert not {"stream", "resume"} & server.calls.pop().body.keys()
                assert not server.calls


@pytest.mark.usefixtures("at_once")
async def test_a_cut_whole_answer_waits_for_room(make_gateway: MakeGateway) -> None:
    first, peer = OneLife(die_after=0), Stub(others=BUSY, die_after=3, seconds_per_token=0.05)
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        answer = asyncio.create_task(client.complete("story", 8))
        await eventually(lambda: client.gateway.metrics.tokens > 0)
        peer.refusal = queue_full("full")
        await eventually(lambda: len(peer.calls) >= 3)
        peer.refusal = None
        assert text_is_right(await answer, "story", 8)


@pytest.mark.usefixtures("at_once")
async def test_a_client_that_leaves_while_its_answer_is_put_together(make_gateway: MakeGateway) -> None:
    first, peer = Stub(die_after=0), Stub(others=BUSY, seconds_per_token=0.05)
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        request = asyncio.create_task(client.complete("x", 1000))
        await eventually(lambda: peer.live == 1 and client.gateway.metrics.tokens > 2)
        request.cancel()
        await eventually(lambda: peer.live == 0)
        await eventually(lambda: client.gateway.metrics.finished["/completion/v2", 499] == 1)
        assert not client.leaks()
