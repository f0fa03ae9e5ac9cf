"""Which streams are asked for with token ids, and from where they go on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from client.engines.engine import Engine
from client.engines.registry import ENGINES, OTHER
from client.relay.engine_request import goes_on_anywhere, may_go_on, sent_body
from client.relay.engine_stream import EngineStream, TokenStream, engine_stream
from client.requests.request import InferenceRequest, read_request
from tests.client.conftest import MakeGateway
from tests.client.engines.fakes import FakeEngine
from tests.client.stub import stubs

VLLM = ENGINES["vllm"]
GREEDY: dict[str, Any] = {"model": "m", "prompt": "p", "temperature": 0, "stream": True}


def read(fields: dict[str, Any], route: str = "/v1/completions", salt: str | None = None) -> InferenceRequest:
    body = json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()
    return read_request("id", route, body, cache_salt=salt)


@pytest.mark.parametrize(
    ("fields", "goes_on"),
    [
        ({}, True),
        (
            {"temperature": 0.0, "prompt": [1, 2], "n": 1, "best_of": 1, "echo": False, "max_tokens": None},
            True,
        ),
        ({"logprobs": None, "suffix": None, "use_beam_search": False, "echo": False}, True),
        ({"temperature": ...}, False),
        ({"temperature": False}, False),
        ({"temperature": 1e-6}, False),
        ({"stream": False}, False),
        ({"prompt": ["p"]}, False),
        ({"prompt": []}, False),
        ({"prompt": [[1]]}, False),
        ({"max_tokens": "16"}, False),
        ({"min_tokens": 1.5}, False),
        ({"logprobs": 0}, False),
        ({"suffix": "x"}, False),
        ({"return_token_ids": True}, False),
    ],
)
def test_greedy_streams_of_one_answer_may_go_on(fields: dict[str, Any], goes_on: bool) -> None:
    request = read(GREEDY | fields)
    assert may_go_on(request, VLLM) is goes_on
    assert type(engine_stream(request, VLLM)) is (TokenStream if goes_on else EngineStream)
    assert not may_go_on(request, OTHER) and not may_go_on(request, ENGINES["llamacpp"])


@pytest.mark.parametrize(
    ("fields", "anywhere"),
    [
        ({"stop": "\n", "max_tokens": 4, "ignore_eos": True, "stop_token_ids": [2]}, True),
        ({"stop": ["\n", "."], "presence_penalty": 0, "frequency_penalty": 0.0, "guided_json": None}, True),
        ({"stop": "\n\n"}, False),
        ({"stop": ["\n", "END"]}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"an_option_of_tomorrow": 1}, False),
    ],
)
def test_an_option_that_is_not_known_is_taken_to_see_the_whole_answer(
    fields: dict[str, Any], anywhere: bool
) -> None:
    assert goes_on_anywhere(GREEDY | fields) is anywhere


@pytest.mark.parametrize("engine", [*ENGINES.values(), OTHER], ids=lambda engine: engine.name)
def test_a_body_is_the_clients_unless_something_must_be_added(engine: Engine) -> None:
    request = read(GREEDY)
    assert sent_body(request, engine, {}) is request.body
    for route in ("/v1/completions", "/tokenize"):
        body = json.loads(sent_body(read(GREEDY, route, salt="tenant"), engine, {}))
        assert body.get("cache_salt") == ("tenant" if route in engine.salted_routes else None)


async def test_an_event_may_be_as_long_as_the_prompt(make_gateway: MakeGateway) -> None:
    """The first one holds its token ids."""
    server = FakeEngine()
    async with stubs(server), make_gateway([server]) as client:
        body = GREEDY | {"prompt": list(range(1000)) * 300, "max_tokens": 3}
        async with client.session.post("/v1/completions", json=body) as response:
            answer = await response.read()
        assert answer.endswith(b"data: [DONE]\n\n") and len(answer) < 2000
        assert server.calls[0].body["return_token_ids"] is True
