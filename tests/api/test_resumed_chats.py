"""Streams of tool calls and reasoning that are cut anywhere, half a call included, and go on elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.relay.assemble import Assembly
from client.relay.resume import Journal, resumed_body
from client.requests.request import read_request
from server.api.app import create_app
from tests.api.chats import BODIES, answering_service, ask, read_stream
from tests.api.fake import FakeService
from tests.serving import serving

USAGE = {"stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> FakeService:
    path: Path = tmp_path_factory.mktemp("chats")
    return answering_service(path)


@pytest.fixture(scope="module")
def url(service: FakeService) -> Iterator[str]:
    with serving(create_app(service)) as url:
        yield url


def body_of(route: str) -> dict[str, Any]:
    return BODIES[route] | (USAGE if route == "/v1/chat/completions" else {})


def without_time(data: bytes) -> bytes:
    return re.sub(rb'"created(_at)?":\d+', b'"created":0', data)


@pytest.mark.parametrize("route", BODIES)
async def test_a_stream_goes_on_byte_for_byte_wherever_it_is_cut(
    service: FakeService, url: str, route: str
) -> None:
    body = body_of(route)
    service.cached_tokens = 5
    whole = await read_stream(url, route, body)
    told = await read_stream(url, route, body, checkpoints=True)
    journal = Journal()
    events, tokens = journal.feed(told)
    assert without_time(events) == without_time(whole) and tokens and journal.done
    service.cached_tokens = 9  # the server that goes on has another cache
    ends = [match.end() for match in re.finditer(rb"\n\n", told)]
    for place in {1, len(told) // 2, *ends[:-1:3], *(end + 20 for end in ends[:-1:5])}:
        cut = Journal()
        came, _ = cut.feed(told[:place])
        if not came or cut.done:
            continue
        resume = cut.resume(1, 7)
        cut.new_connection()
        again = json.loads(resumed_body(body, resume, checks_weights=True))
        rest = await read_stream(url, route, again, checkpoints=True)
        more, _ = cut.feed(rest)
        assert without_time(came + more) == without_time(whole), place
        assert cut.done


@pytest.mark.parametrize("route", BODIES)
async def test_a_whole_answer_is_put_together_of_a_stream(url: str, route: str) -> None:
    assembly = Assembly(read_request("the-id", route, json.dumps(BODIES[route]).encode()))
    told = await read_stream(url, route, json.loads(assembly.request.body), checkpoints=True)
    for begin in range(0, len(told), 700):
        events, _ = assembly.journal.feed(told[begin : begin + 700])
        await assembly.piece(events)
    await assembly.end()
    outcome = assembly.outcome(None)
    assert not isinstance(outcome, Exception)
    made, written = json.loads(outcome.body), await ask(url, route, BODIES[route])
    for answer in (made, written):
        answer.pop("created", None)
        answer.pop("created_at", None)
    assert made == written


async def test_events_of_one_token_come_together_or_not_at_all() -> None:
    group = b": more\nevent: a\ndata: {}\n\n: more\nevent: b\ndata: {}\n\n"
    last = b": tokens 0 1\nevent: c\ndata: {}\n\n"
    journal = Journal()
    assert journal.feed(group) == (b"", 0)
    assert journal.feed(last[:-1]) == (b"", 0)
    events = b"event: a\ndata: {}\n\nevent: b\ndata: {}\n\nevent: c\ndata: {}\n\n"
    assert journal.feed(last[-1:]) == (events, 1)
    journal.feed(group)
    journal.new_connection()
    assert journal.feed(b": end\n: tokens 0 2 .\nevent: d\ndata: {}\n\n") == (b"event: d\ndata: {}\n\n", 1)
    assert journal.done and journal.resume(1, 0).choices[0].token_ids == [1, 2]
