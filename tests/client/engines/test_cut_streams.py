"""Streams of engines that are cut: those whose tokens are known go on, all others end with an error."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.engines.fakes import HALF, FakeEngine, answer_ids, ids_of, text_of
from tests.client.engines.formats import FORMATS, LLAMA_CPP, SGLANG, VLLM, Format
from tests.client.stub import short_lives, stubs

WORDS = "once upon a time"
TELLING = [format for format in FORMATS if format.tells_ids]


async def stream(
    client: GatewayClient, route: str = "/v1/completions", **fields: Any
) -> list[dict[str, Any]]:
    """The events of a stream, parsed; an error event is the last one."""
    body = {"model": "m", "prompt": WORDS, "max_tokens": 40, "temperature": 0, "stream": True} | fields
    async with client.session.post(route, json=body) as response:
        assert response.status == 200, await response.text()
        text = await response.text()
    assert text.endswith("data: [DONE]\n\n") or "\nevent: error\n" in text
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def text_in(events: list[dict[str, Any]]) -> str:
    return "".join(choice["text"] for event in events for choice in event.get("choices", ()))


@pytest.mark.parametrize("format", TELLING, ids=lambda one: one.owner)
@pytest.mark.parametrize("piece", [1, 3])
async def test_a_greedy_completion_goes_on_wherever_it_is_cut(
    make_gateway: MakeGateway, format: Format, piece: int
) -> None:
    servers = [FakeEngine(format=format, piece=piece), FakeEngine(format=format, piece=piece)]
    usage = {"include_usage": True, "continuous_usage_stats": True}
    async with stubs(*servers), make_gateway(servers) as client:
        whole = await stream(client, stream_options=usage)
        assert any(id % HALF == 0 for id in answer_ids(ids_of(WORDS), 40)), "text is held back somewhere"
        for events in range(1, 40 // piece + 1):
            for server in servers:
                server.calls.clear()
                server.die_after = events if server is servers[0] else None
            servers[1].others = 30
            await client.ready(2)
            cut = await stream(client, stream_options=usage)
            servers[0].die_after = None
            assert text_in(cut) == text_of(WORDS, 40), events
            assert len({event["id"] for event in cut}) == len({event["created"] for event in cut}) == 1
            assert cut[-1]["usage"] == whole[-1]["usage"]
            assert [c["finish_reason"] for e in cut for c in e["choices"] if c["finish_reason"]] == ["length"]
            assert all(not c.get("token_ids") for e in cut for c in e["choices"])
            if servers[0].calls:
                (again,) = servers[1].calls
                assert isinstance(again.body["prompt"], list) or events < 3 or piece > 1


async def test_what_goes_on_is_asked_for_as_tokens(make_gateway: MakeGateway) -> None:
    first, second = FakeEngine(die_after=30), FakeEngine(others=30)
    async with stubs(first, second), make_gateway([first, second]) as client:
        await stream(client, min_tokens=35, stop_token_ids=[7], user="u")
        (call,) = second.calls
        prompt, ids = ids_of(WORDS), answer_ids(ids_of(WORDS), 40)
        known = len(call.body["prompt"]) - len(prompt)
        assert 27 <= known <= 30 and call.body["prompt"] == prompt + ids[:known]
        assert (call.body["max_tokens"], call.body["min_tokens"]) == (40 - known, 35 - known)
        assert (call.body["stop_token_ids"], call.body["return_token_ids"]) == ([7], True)


@pytest.mark.parametrize(
    "fields", [{"presence_penalty": 1}, {"stop": "xyz"}, {"structured_outputs": {"a": 1}}]
)
async def test_what_depends_on_the_whole_answer_begins_anew(
    make_gateway: MakeGateway, fields: dict[str, Any]
) -> None:
    first, second = FakeEngine(die_after=20), FakeEngine(others=30)
    async with stubs(first, second), make_gateway([first, second]) as client:
        events = await stream(client, **fields)
        assert text_in(events) == text_of(WORDS, 40)
        (call,) = second.calls
        assert (call.body["prompt"], call.body["max_tokens"]) == (WORDS, 40)


async def test_a_stop_string_ends_it_where_it_would_have(make_gateway: MakeGateway) -> None:
    whole = text_of(WORDS, 40)
    stop = whole[90:96]
    servers = [FakeEngine(), FakeEngine(others=30)]
    async with stubs(*servers), make_gateway(servers) as client:
        for events in range(1, 25):
            servers[0].die_after = events
            await client.ready(2)
            cut = await stream(client, stop=stop)
            assert text_in(cut) == whole[: whole.find(stop)], events
            assert cut[-1]["choices"][0]["finish_reason"] == "stop"


async def test_servers_may_die_all_the_time(make_gateway: MakeGateway) -> None:
    servers = [FakeEngine(), FakeEngine()]
    async with stubs(*servers), make_gateway(servers, retry_ratio=100, stream_wait_seconds=20) as client:
        async with short_lives(servers, 8):
            texts = await asyncio.gather(*(stream(client, prompt=f"{WORDS} {n}") for n in range(10)))
        for n, events in enumerate(texts):
            assert text_in(events) == text_of(f"{WORDS} {n}", 40)
        assert client.gateway.metrics.resumes > 20


@pytest.mark.parametrize("format", TELLING, ids=lambda one: one.owner)
async def test_an_engine_that_is_lost_ends_its_streams_with_an_error(
    make_gateway: MakeGateway, format: Format
) -> None:
    """Another server goes on with it, as after a cut."""
    first, second = FakeEngine(format=format, breaks_after=9), FakeEngine(format=format, others=30)
    async with stubs(first, second), make_gateway([first, second]) as client:
        assert text_in(await stream(client)) == text_of(WORDS, 40)
        assert len(first.calls) == len(second.calls) == 1


CUT: list[tuple[Format, str, dict[str, Any]]] = [
    (VLLM, "/v1/completions", {"temperature": 1}),
    (VLLM, "/v1/completions", {"temperature": None}),
    (VLLM, "/v1/completions", {"n": 2}),
    (VLLM, "/v1/completions", {"logprobs": 0}),
    (VLLM, "/v1/completions", {"echo": True}),
    (VLLM, "/v1/completions", {"prompt": [WORDS]}),
    (VLLM, "/v1/completions", {"return_token_ids": True}),
    (VLLM, "/v1/chat/completions", {"messages": [{"role": "user", "content": WORDS}]}),
    (LLAMA_CPP, "/v1/completions", {}),
]


@pytest.mark.parametrize(("format", "route", "fields"), CUT)
@pytest.mark.parametrize("how", ["cut", "error"])
async def test_all_others_end_with_an_error_event(
    make_gateway: MakeGateway, format: Format, route: str, fields: dict[str, Any], how: str
) -> None:
    servers = [Parrot(format=format), Parrot(format=format)]
    async with stubs(*servers), make_gateway(servers) as client:
        for server in servers:
            setattr(server, "die_after" if how == "cut" else "breaks_after", 5)
        events = await stream(client, route, **fields)
        assert len(events) == 6, "what came before is passed on"
        error = events[-1]["error"]
        assert set(error) == {"message", "type", "param", "code"}
        if how == "error":
            assert (error["message"], error["code"]) == ("the engine is gone", "internal_error")
        else:
            assert error["code"] == "upstream_failed"
        assert sum(len(server.calls) for server in servers) == 1


class Parrot(FakeEngine):
    """Takes any prompt for the same one."""

    def _prompt(self, call: Any) -> list[int]:
        return ids_of(WORDS)


async def test_a_stream_cut_before_its_first_event_is_asked_of_another(make_gateway: MakeGateway) -> None:
    first, second = FakeEngine(format=LLAMA_CPP, die_after=0), FakeEngine(format=LLAMA_CPP, others=30)
    async with stubs(first, second), make_gateway([first, second]) as client:
        events = await stream(client, temperature=1)
        assert text_in(events) == text_of(WORDS, 40)


async def test_it_does_not_go_on_at_another_engine(make_gateway: MakeGateway) -> None:
    first, second = FakeEngine(die_after=9), FakeEngine(format=SGLANG, others=30)
    async with stubs(first, second), make_gateway([first, second], stream_wait_seconds=0.5) as client:
        first.dead = True  # so that the probe after the cut finds it out
        events = await stream(client)
        assert events[-1]["error"]["code"] in ("upstream_failed", "no_replica") and not second.calls


async def test_an_answer_that_goes_on_otherwise_ends_with_an_error(make_gateway: MakeGateway) -> None:
    """It is compared where it says again what the client has; nothing is said twice or changed."""
    first, second = FakeEngine(die_after=20), Liar(others=30)
    async with stubs(first, second), make_gateway([first, second]) as client:
        events = await stream(client, presence_penalty=1)
        error = events.pop()["error"]
        assert "answered otherwise" in error["message"] and error["code"] == "upstream_failed"
        assert text_of(WORDS, 40).startswith(text_in(events)) and len(second.calls) == 1


class Liar(FakeEngine):
    """Has other weights."""

    def _prompt(self, call: Any) -> list[int]:
        return [1, 2, 3]


async def test_an_engine_too_old_to_tell_tokens_is_not_gone_on_with(make_gateway: MakeGateway) -> None:
    first, second = Silent(die_after=9), Silent(others=30)
    async with stubs(first, second), make_gateway([first, second]) as client:
        assert (await stream(client))[-1]["error"]["code"] == "upstream_failed"
        assert not second.calls


class Silent(FakeEngine):
    """Ignores what it does not know."""

    def _events(self, call: Any) -> Any:
        call.body.pop("return_token_ids", None)
        return super()._events(call)


async def test_whole_answers_are_asked_for_again_whole(make_gateway: MakeGateway) -> None:
    servers = [FakeEngine(), FakeEngine()]
    async with stubs(*servers), make_gateway(servers) as client:
        for server in servers:
            server.die_after = 0
        body = {"model": "m", "prompt": WORDS, "max_tokens": 8}
        async with client.session.post("/v1/completions", json=body) as response:
            assert response.status == 200
            assert (await response.json())["choices"][0]["text"] == text_of(WORDS, 8)
        assert all("stream" not in call.body for server in servers for call in server.calls)


async def test_a_comment_is_no_beginning_of_an_answer(make_gateway: MakeGateway) -> None:
    """Engines send some to keep connections open; one that dies after them is asked of another."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    first, second = FakeEngine(raw=head + b"8\r\n: ping\n\n\r\n"), FakeEngine(others=30)
    async with stubs(first, second), make_gateway([first, second]) as client:
        assert text_in(await stream(client, temperature=1)) == text_of(WORDS, 40)
        assert len(first.calls) == len(second.calls) == 1


async def test_a_server_that_goes_on_with_something_odd_ends_the_stream(make_gateway: MakeGateway) -> None:
    first, second = FakeEngine(die_after=20), Odd(others=30)
    async with stubs(first, second), make_gateway([first, second]) as client:
        events = await stream(client)
        assert events.pop()["error"]["code"] == "upstream_failed"
        assert text_of(WORDS, 40).startswith(text_in(events))


class Odd(FakeEngine):
    """Its fifth event is no chunk of a completion."""

    def _events(self, call: Any) -> Any:
        for number, data in enumerate(super()._events(call)):
            yield b'{"odd":1}' if number == 4 else data
