"""Makes a whole answer of a stream, so that an answer longer than its servers live is finished, too.

A server that dies takes all of a whole answer with it, but of a stream only what it had not sent.
A whole answer that was lost again and again is therefore asked for as a stream, which goes on at another
server where it is cut (`resume`). The client gets the body that a server would have written.
"""

from __future__ import annotations

import math
from dataclasses import replace
from io import StringIO
from typing import Any

import orjson

from client.classify import BUSY, BadAnswer, StreamFailed, Verdict
from client.exchange import Answer
from client.request import InferenceRequest
from client.resume import Journal
from protocol.routes import COMPLETION_V2
from protocol.status import ServiceKind

STREAMING: ServiceKind = "continuous_batching"
"""The servers that can stream."""
_CHUNK = "chat.completion.chunk"
_WHOLE = "chat.completion"

LOSSES = 2
"""Attempts lost with their servers after which a stream is asked for; one loss is an accident."""

Json = dict[str, Any]


class NoCompletion(BadAnswer):
    """A stream of which no whole answer can be made: not every server is one of this project's."""


class Recovery:
    """How a whole answer is asked for, after what became of the attempts so far.

    Attributes:
        assembly: takes it as a stream; None while it is asked for whole.
    """

    def __init__(self, request: InferenceRequest) -> None:
        self.assembly: Assembly | None = None
        self._request = request
        self._losses = 0.0

    def note(self, result: Answer | Exception, verdict: Verdict) -> None:
        """An attempt failed with `result`, and another one follows."""
        if isinstance(result, NoCompletion):
            self.assembly, self._losses = None, -math.inf
        elif verdict is not BUSY:  # a stream costs those more that are full
            self._losses += 1
            if self.assembly is None and self._losses >= LOSSES:
                self.assembly = Assembly(self._request)


class Assembly:
    """The whole answer to `request` while it is made; an `exchange.Sink`."""

    status = 200
    """Nobody waits for the first event: its time is not of the metrics."""

    def __init__(self, request: InferenceRequest) -> None:
        self.request = _streamed(request)
        self.journal = Journal()
        self._choices: dict[int, _Choice] = {}
        self._last: Json | None = None

    async def piece(self, data: bytes) -> None:
        """Take whole events.

        Raises:
            NoCompletion: they are none of a completion.
        """
        try:
            for line in data.splitlines():
                if line.startswith(b"data: {"):
                    self._take(orjson.loads(line[6:]))
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            raise NoCompletion("an event is none of a completion") from None

    def _take(self, event: Json) -> None:
        for choice in event["choices"]:
            index = choice["index"]
            if not 0 <= index < self.request.choices:
                raise IndexError(index)
            self._choices.setdefault(index, _Choice()).extend(choice)
        if event.get("usage") is not None:
            self._last = event

    async def end(self) -> None:
        """Nothing more comes.

        Raises:
            NoCompletion: something of the answer is missing.
        """
        finished = sum(choice.finished for choice in self._choices.values())
        if self._last is None or finished < self.request.choices:
            raise NoCompletion("a stream ended without its usage, or without the end of an answer")

    def outcome(self, result: Answer | Exception | None) -> Answer | Exception:
        """What an attempt at the stream brought, as if a whole answer had been asked for."""
        if result is None:
            return Answer(200, self._body(), is_json=True)
        if isinstance(result, StreamFailed):
            return Answer(result.status or 500, result.body, is_json=result.status != 0)
        return result

    def _body(self) -> bytes:
        """The last event, which has all that stands around the answers, with the answers."""
        choices = [choice.whole() for _, choice in sorted(self._choices.items())]
        body = {**(self._last or {}), "choices": choices}
        if body.get("object") == _CHUNK:
            body["object"] = _WHOLE
        return orjson.dumps(body)


class _Choice:
    """One answer: the fields of its first event, to which those that follow add."""

    __slots__ = ("_fields", "_text")

    def __init__(self) -> None:
        self._fields: Json = {}
        self._text = StringIO()

    @property
    def finished(self) -> bool:
        return self._fields.get("finish_reason") is not None

    def extend(self, piece: Json) -> None:
        """Take the next piece, in the shape of any of the routes."""
        delta = piece.get("delta")
        self._text.write(piece["text"] if delta is None else delta.get("content", ""))
        if not self._fields:
            self._fields = piece
            return
        self._fields["finish_reason"] = piece["finish_reason"]
        if "token_ids" in piece:
            self._fields["token_ids"] += piece["token_ids"]
        for name, values in (piece.get("logprobs") or {}).items():
            if values is not None:
                self._fields["logprobs"][name] += values

    def whole(self) -> Json:
        """The answer as it stands in a whole body."""
        text = self._text.getvalue()
        if "delta" not in self._fields:
            return {**self._fields, "text": text}
        message = {"role": "assistant", "content": text, "refusal": None}
        fields = {name: value for name, value in self._fields.items() if name != "delta"}
        return {**fields, "message": message}


def _streamed(request: InferenceRequest) -> InferenceRequest:
    """`request`, asking for a stream that reports its usage."""
    fields = {**request.fields, "stream": True}
    if request.route != COMPLETION_V2:  # whose streams always do
        fields["stream_options"] = {"include_usage": True}
    return replace(request, body=orjson.dumps(fields), fields=fields, stream=True)
