"""How to put a request to each API, and how to read its answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import aiohttp
import orjson

from benchmarks.loadgen.traffic import Request
from protocol import routes

Api = Literal["v1", "v2", "completions", "chat"]

PATHS: dict[Api, str] = {
    "v1": routes.COMPLETION_V1,
    "v2": routes.COMPLETION_V2,
    "completions": routes.OPENAI_COMPLETIONS,
    "chat": routes.OPENAI_CHAT_COMPLETIONS,
}


@dataclass(slots=True, frozen=True)
class Endpoint:
    """Where requests go and in what form."""

    name: str
    url: str
    model: str
    api: Api = "completions"
    stream: bool = True
    fixed_length: bool = True
    """Ask for ``ignore_eos``, so that answers have exactly the length wanted (this stack and vLLM
    know it, OpenAI does not)."""
    api_key: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        key = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        return {"content-type": "application/json", **key}

    def body(self, request: Request) -> bytes:
        """The request's body in the form of this endpoint's API."""
        if self.api in ("v1", "v2"):
            config: dict[str, Any] = {"max_new_tokens": request.new_tokens, **request.options}
            if self.fixed_length:
                config["ignore_eos"] = True
            body: dict[str, Any] = {"prompt": request.prompt, "generation_config": config}
        else:
            body = self._openai_body(request)
        return orjson.dumps({"model": self.model, "stream": self.stream, **body})

    def _openai_body(self, request: Request) -> dict[str, Any]:
        options = dict(request.options)
        body: dict[str, Any] = {"max_tokens": request.new_tokens, "temperature": 0.0}
        if options.pop("do_sample", False):
            body["temperature"] = options.pop("temperature", 1.0)
        body |= options
        if self.fixed_length:
            body["ignore_eos"] = True
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        if self.api == "completions":
            return body | {"prompt": request.prompt}
        if not isinstance(request.prompt, str):
            raise ValueError("the chat API takes text: token ids cannot be put to it")
        return body | {"messages": [{"role": "user", "content": request.prompt}]}


@dataclass(slots=True)
class Record:
    """What became of one request; times are seconds after the start of the run."""

    index: int
    due: float
    """When it should have been sent."""
    sent: float = 0.0
    first: float | None = None
    """When the first text came, or the end of an answer without any; with answers that come whole,
    when that was."""
    end: float = 0.0
    pieces: list[float] = field(default_factory=list)
    """When each further piece of text came."""
    prompt_tokens: int = 0
    new_tokens: int = 0
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it, for a file of raw records."""
        return asdict(self)


async def send(
    http: aiohttp.ClientSession, endpoint: Endpoint, body: bytes, record: Record, origin: float
) -> None:
    """Send `body` and write into `record` what happens; nothing is raised."""
    record.sent = time.perf_counter() - origin
    try:
        async with http.post(
            endpoint.url + PATHS[endpoint.api], data=body, headers=endpoint.headers
        ) as response:
            if response.status != 200:
                record.error = f"status {response.status}: {_error_code(await response.read())}"
            elif endpoint.stream:
                await _read_stream(response, record, origin)
            else:
                answer = orjson.loads(await response.read())
                record.first = time.perf_counter() - origin
                _read_usage(answer, record)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        record.error = f"{type(error).__name__}: {error}".rstrip(": ")
    record.end = time.perf_counter() - origin


def _error_code(body: bytes) -> str:
    try:
        error = orjson.loads(body)["error"]
        return str(error.get("code") or error.get("message"))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return body[:80].decode(errors="replace")


async def _read_stream(response: aiohttp.ClientResponse, record: Record, origin: float) -> None:
    tail, done = b"", False
    async for chunk in response.content.iter_any():
        now = time.perf_counter() - origin
        *events, tail = (tail + chunk).split(b"\n\n")
        for data in _payloads(events):
            if data == b"[DONE]":
                done = True
                continue
            event = orjson.loads(data)
            if "error" in event:
                record.error = f"error event: {_error_code(data)}"
                return
            _read_usage(event, record)
            if not any(map(_shows, event.get("choices", ()))):
                continue
            if record.first is None:
                record.first = now
            else:
                record.pieces.append(now)
    if not done:
        record.error = "the stream was cut"


def _payloads(events: list[bytes]) -> Iterator[bytes]:
    for event in events:
        for line in event.split(b"\n"):
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _shows(choice: dict[str, Any]) -> bool:
    """Whether a choice brings text, under the name that each API has for it, or ends its answer:
    one whose tokens have no text is answered all the same."""
    delta = choice.get("delta") or choice.get("message") or {}
    return bool(choice.get("text") or delta.get("content") or choice.get("finish_reason"))


def _read_usage(answer: dict[str, Any], record: Record) -> None:
    usage = answer.get("usage")
    if usage:
        record.prompt_tokens = usage["prompt_tokens"]
        record.new_tokens = usage["completion_tokens"]
