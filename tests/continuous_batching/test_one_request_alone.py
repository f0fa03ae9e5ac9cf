"""Odd requests to a real server: each is answered or refused by name, and harms no other."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.continuous_batching.server_process import ServerProcess

ROUTE = "/v1/completions"
GOOD = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path_factory.mktemp("server"), tiny_model)
    yield process
    process.stop()


@pytest.fixture
async def session(server: ServerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url) as session:
        await server.ready(session)
        yield session


def form(**fields: Any) -> dict[str, Any]:
    return {"structured_outputs": fields}


DEEP: dict[str, Any] = {"type": "string"}
for _ in range(60):
    DEEP = {"type": "object", "properties": {"a": DEEP, "b": {"type": "integer"}}, "required": ["a"]}

ODD: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "a stop string longer than any answer": ({"stop": "x" * 50_000}, 200, None),
    "many stop strings": ({"stop": [f"stop {i}" for i in range(5000)]}, 400, "stop"),
    "a bias at the end of what floats can hold": ({"logit_bias": {"5": 1e308}}, 400, "logit_bias"),
    "an expression with many states": (form(regex="((a|b){200}c){200}[a-z]{3000}"), 200, None),
    "a form that ends before the least length": ({**form(choice=["a"]), "min_tokens": 4}, 400, "min_tokens"),
    "a deep schema": (form(json=DEEP), 400, "structured_outputs"),
    "a schema that refers to itself": (form(json={"$ref": "#"}), 400, None),
    "half a surrogate pair": ({"prompt": "a \ud83d b"}, 400, None),
    "a text of zeros": ({"prompt": "\x00" * 100}, 200, None),
    "a token beyond any vocabulary": ({"stop_token_ids": [10**12]}, 400, "stop_token_ids.0"),
    "an empty word": ({"bad_words": [""]}, 400, "bad_words.0"),
    "all tokens forbidden but one, which ends it": (
        {"allowed_token_ids": [1], "min_tokens": 2},
        400,
        None,
    ),
}


@pytest.mark.parametrize("what", ODD)
async def test_answered_or_refused_by_name(
    session: aiohttp.ClientSession, server: ServerProcess, what: str
) -> None:
    fields, status, param = ODD[what]
    engine = (await server.status(session))["details"]["engine_pid"]
    for stream in (False, True):
        body = json.dumps(GOOD | {"stream": stream} | fields)
        async with session.post(ROUTE, data=body, headers={"content-type": "application/json"}) as answer:
            text = await answer.text()
        assert answer.status == status, text
        if param is not None:
            assert json.loads(text)["error"]["param"] == param
    async with session.post(ROUTE, json=GOOD) as answer:
        assert answer.status == 200
    assert (await server.status(session))["details"]["engine_pid"] == engine
    assert "Traceback" not in server.log.read_text()
