"""A server that answers as a model of a family would, and the calls of each chat API."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import aiohttp

from protocol.errors import unavailable
from protocol.headers import REQUEST_ID, STREAM_CHECKPOINT
from server.text.tokenizer import Tokenizer
from tests.api.fake import FakeService
from tests.text.families import family_tokenizer

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
DESCRIPTION = "Tells the weather."
ARGUMENTS = {"city": "Zürich 你", "days": 2}
CALL = {"name": "get_weather", "arguments": ARGUMENTS}
ANSWER = (
    "<think>\nThe user asks.\n</think>\n\nLet me see.\n"
    f"<tool_call>\n{json.dumps(CALL, ensure_ascii=False)}\n</tool_call>\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
)
QUESTION = "What is the weather?"

CHAT_TOOL = {"name": "get_weather", "description": DESCRIPTION, "parameters": PARAMETERS}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "fake",
        "messages": [{"role": "user", "content": QUESTION}],
        "tools": [{"type": "function", "function": CHAT_TOOL}],
        "seed": 3,
    },
    "/v1/responses": {
        "model": "fake",
        "input": QUESTION,
        "tools": [{"type": "function", **CHAT_TOOL}],
        "seed": 3,
    },
    "/v1/messages": {
        "model": "fake",
        "max_tokens": 1500,
        "messages": [{"role": "user", "content": QUESTION}],
        "tools": [{"name": "get_weather", "description": DESCRIPTION, "input_schema": PARAMETERS}],
        "thinking": {"type": "adaptive"},
        "seed": 3,
    },
}
"""The same request to each API."""


class FailsOnce(FakeService):
    """Loses its engine once after `fail_after` tokens, and has another one then."""

    @property
    def failure(self) -> Exception:
        self.fail_after = math.inf
        return unavailable("the engine was lost", code="engine_lost")

    @failure.setter
    def failure(self, _: Exception) -> None:
        """What the base class sets is not used."""


def answering_service(
    path: Path, family: str = "hermes", answer: str = ANSWER, kind: type[FakeService] = FakeService
) -> FakeService:
    """A service whose model always says `answer`."""
    tokenizer = Tokenizer(family_tokenizer(path, family))
    service = kind(tokenizer, reply=tokenizer.encode(answer, special=False))
    service.model_max_length = 4096
    return service


async def read_stream(
    url: str, route: str, body: dict[str, Any], *, checkpoints: bool = False, request_id: str = "the-id"
) -> bytes:
    """All bytes of a stream."""
    headers = {REQUEST_ID: request_id} | ({STREAM_CHECKPOINT: "1"} if checkpoints else {})
    async with (
        aiohttp.ClientSession(url, headers=headers) as http,
        http.post(route, json={**body, "stream": True}) as response,
    ):
        data = await response.read()
        assert response.status == 200, data
        return data


async def ask(url: str, route: str, body: dict[str, Any], *, request_id: str = "the-id") -> dict[str, Any]:
    """A whole answer."""
    headers = {REQUEST_ID: request_id}
    async with (
        aiohttp.ClientSession(url, headers=headers) as http,
        http.post(route, json=body) as response,
    ):
        answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
        return answer


async def refused(url: str, route: str, body: dict[str, Any], status: int = 400) -> dict[str, Any]:
    """The error with which a request is refused."""
    async with aiohttp.ClientSession(url) as http, http.post(route, json=body) as response:
        answer = await response.json()
        assert response.status == status, answer
        error: dict[str, Any] = answer["error"]
        return error
