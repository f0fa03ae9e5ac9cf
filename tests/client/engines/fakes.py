"""Servers of other engines without a model: what they answer follows from the tokens of the prompt alone."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.client.calls import Call
from tests.client.engines.formats import VLLM, Format, Json
from tests.client.stub import Stub

HALF = 5
"""Ids that it divides are half a character: their text comes with the next token's."""


def ids_of(prompt: str | list[int]) -> list[int]:
    """The tokens of a prompt."""
    return (
        [zlib.crc32(word.encode()) % 1000 for word in prompt.split()] if isinstance(prompt, str) else prompt
    )


def answer_ids(prompt: list[int], count: int) -> list[int]:
    """The tokens that follow: each from all before it."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(zlib.crc32(json.dumps(ids).encode()) % 1000)
    return ids[len(prompt) :]


def texts_of(ids: list[int]) -> list[str]:
    """What each token adds to the text."""
    texts, held = [], ""
    for number, one in enumerate(ids):
        held += f" {one}"
        half = one % HALF == 0 and number < len(ids) - 1
        texts.append("" if half else held)
        held = held if half else ""
    return texts


def text_of(prompt: str | list[int], count: int) -> str:
    """The whole text of an answer."""
    return "".join(texts_of(answer_ids(ids_of(prompt), count)))


@dataclass
class FakeEngine(Stub):
    """A server of the engine whose `format` it has; the attributes of `Stub` script it, too."""

    kind: Any = "openai_compatible"
    format: Format = VLLM
    key: str | None = None
    waiting: int = 0
    loading: bool = False
    dead: bool = False
    """Its models are listed, and its engine is gone."""
    silent: bool = False
    """It tells no load and nothing of itself."""
    piece: int = 1
    """Tokens of an event."""
    line: bytes = b"\n"
    asked: list[str] = field(default_factory=list)
    """Paths of probes."""
    fault: tuple[int, bytes] | None = None
    """Status and body of the answer to every completion."""
    breaks_after: int | None = None
    """Events after which the next stream ends with an error."""

    async def _get(self, path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> bool:
        self.asked.append(path)
        if not self._lets_in(path, headers):
            await self._whole(writer, 401, b'{"error": "Unauthorized"}')
        elif self.loading:
            await self._whole(writer, 503, self.format.error(503, "Loading model"))
        elif path == "/v1/models":
            cards = {"object": "list", "data": [self.format.card(self.model)]}
            await self._whole(writer, 200, json.dumps(cards).encode())
        elif path in ("/health", "/ready"):
            await self._whole(writer, 503 if self.dead else 200, b"")
        elif self.silent:
            await self._whole(writer, 404, b'{"detail": "Not Found"}')
        elif path == "/metrics":
            await self._whole(
                writer, 200, self.format.metrics(self.live + self.others, self.waiting).encode()
            )
        else:
            assert path == self.format.about, path
            await self._whole(writer, 200, json.dumps(self.format.told()).encode())
        return True

    def _lets_in(self, path: str, headers: dict[str, str]) -> bool:
        is_open = path.startswith(self.format.open)
        return self.key is None or is_open or headers.get("authorization") == f"Bearer {self.key}"

    async def _complete(self, call: Call, writer: asyncio.StreamWriter) -> bool:
        status, body = self.fault or (200, b"")
        if not self._lets_in(call.path, call.headers):
            status, body = 401, b'{"error": "Unauthorized"}'
        elif call.body["model"] != self.model:
            message = f"The model `{call.body['model']}` does not exist."
            status, body = 404, self.format.error(404, message, "model")
        if status != 200:
            await self._whole(writer, status, body)
            return True
        if self.raw is not None:
            writer.write(self.raw)
            await writer.drain()
            return False
        if call.body.get("stream"):
            return await self._stream(call, writer)
        await asyncio.sleep(self.seconds_per_token * call.count)
        if self._dies(0):
            writer.transport.abort()
            return False
        text = "".join(texts_of(answer_ids(self._prompt(call), call.count)))
        choice = self._of(call, text, "length", whole=True)
        answer = self._chunk(call, [choice], self._usage(call, call.count))
        await self._whole(writer, 200, json.dumps(answer).encode())
        return True

    async def _stream(self, call: Call, writer: asyncio.StreamWriter) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for sent, data in enumerate(self._events(call)):
            if self._dies(sent):
                writer.write(b"40\r\ndata: {")  # in the middle of an event
                await writer.drain()
                writer.transport.abort()
                return False
            if sent == self.breaks_after:
                self.breaks_after = None
                self._piece(writer, self.format.stream_error("the engine is gone"))
                break
            await asyncio.sleep(self.seconds_per_token)
            self._piece(writer, b"data: " + data + self.line + self.line)
            await writer.drain()
        else:
            self._piece(writer, b"data: [DONE]" + self.line + self.line)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _events(self, call: Call) -> Iterator[bytes]:
        """The data of all events of a stream but the last."""
        prompt = self._prompt(call)
        ids = answer_ids(prompt, call.body.get("max_tokens", 16))
        told = self.format.tells_ids and call.body.get("return_token_ids", False)
        options = call.body.get("stream_options") or {}
        done = 0
        for text, new, reason in self._pieces(ids, call.body.get("stop") or ""):
            done += len(new)
            choice = self._of(
                call, text, reason, new if told else None, prompt if told and done == len(new) else None
            )
            each = self._usage(call, done) if options.get("continuous_usage_stats") else None
            yield self._dump(self._chunk(call, [choice], each))
        if options.get("include_usage"):
            yield self._dump(self._chunk(call, [], self._usage(call, done)))

    def _pieces(self, ids: list[int], stop: str) -> Iterator[tuple[str, list[int], str | None]]:
        """Text, tokens and end of each event; a stop string holds text back as long as it may begin there."""
        texts, all_text, shown = texts_of(ids), "", 0
        for begin in range(0, len(ids), self.piece):
            end = min(len(ids), begin + self.piece)
            all_text += "".join(texts[begin:end])
            place = all_text.find(stop) if stop else -1
            reason = "stop" if place >= 0 else "length" if end == len(ids) else None
            held = max(0, len(stop) - 1) if reason is None else 0
            until = place if place >= 0 else max(shown, len(all_text) - held)
            yield all_text[shown:until], ids[begin:end], reason
            shown = until
            if reason == "stop":
                return

    def _prompt(self, call: Call) -> list[int]:
        return ids_of(call.prompt if call.chat else call.body["prompt"])

    def _of(
        self,
        call: Call,
        text: str,
        reason: str | None,
        ids: list[int] | None = None,
        prompt: list[int] | None = None,
        *,
        whole: bool = False,
    ) -> Json:
        choice = self.format.choice(text, reason, ids, prompt)
        if call.chat:
            del choice["text"]
            choice["message" if whole else "delta"] = {"role": "assistant", "content": text}
        return choice

    def _chunk(self, call: Call, choices: list[Json], usage: Json | None) -> Json:
        request_id = call.headers.get("x-request-id", "none")
        return self.format.chunk(self.port, request_id, self.model, choices, usage)

    def _usage(self, call: Call, count: int) -> Json:
        prompt = len(self._prompt(call))
        return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}

    def _dump(self, chunk: Json) -> bytes:
        return json.dumps(chunk, separators=(",", ":")).encode()
