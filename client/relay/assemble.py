"""Builds a whole answer from a stream, so that one that outlives its server is continued by another.

A server that dies takes all of a whole answer with it, but of a stream only what it had not sent.
A whole answer that was lost again and again is therefore asked for as a stream, which goes on at another
server where it is cut (`resume`). The client gets the body that a server would have written.
"""

from __future__ import annotations

import math
from dataclasses import replace

import orjson

from client.health.replica import Replica
from client.relay.exchange import Answer
from client.relay.parts import whole_answer
from client.relay.resume import Journal
from client.requests.request import InferenceRequest
from client.upstream.classify import BUSY, BadAnswer, StreamFailed, Verdict
from client.upstream.session import MAX_ANSWER_BYTES
from protocol.error_shapes import reshaped
from protocol.errors import status_on
from protocol.routes import OPENAI_CHAT_COMPLETIONS, OPENAI_COMPLETIONS

LOSSES = 2
"""Attempts lost with their servers after which a stream is asked for; one loss is an accident."""


class NoCompletion(BadAnswer):
    """A stream that cannot be made a whole answer: servers of other projects send some."""


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
        if isinstance(result, NoCompletion) or (self.assembly and not self.assembly.resumable):
            self.assembly, self._losses = None, -math.inf
        elif verdict is not BUSY:  # a stream costs those more that are full
            self._losses += 1
            if self.assembly is None and self._losses >= LOSSES:
                self.assembly = Assembly(self._request)


class Assembly:
    """The whole answer to `request` while it is made; an `exchange.Sink`."""

    status = 200
    """No client waits for the first event: metrics leave its time out."""

    def __init__(self, request: InferenceRequest) -> None:
        self.request = _streamed(request)
        self.journal = Journal()
        self._answer = whole_answer(request.route, request.choices)
        self._size = 0

    def suits(self, replica: Replica) -> bool:
        """Whether `replica` takes it as a stream, and goes on with what there is of it."""
        if self.journal.pieces:
            return self.journal.goes_on(self.request, replica)
        return replica.engine is None and replica.terms.take(self.request.route, self.request.option)

    @property
    def resumable(self) -> bool:
        """Whether another server can go on with it."""
        return self.journal.resumable(self.request.choices)

    async def piece(self, data: bytes) -> None:
        """Take whole events.

        Raises:
            NoCompletion: they are none of a completion, or of too long a one.
        """
        self._size += len(data)
        if self._size > MAX_ANSWER_BYTES:
            raise NoCompletion(f"a stream of more than {MAX_ANSWER_BYTES} bytes")
        try:
            for line in data.splitlines():
                if line.startswith(b"data: {"):
                    self._answer.take(orjson.loads(line[6:]))
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            raise NoCompletion("an event is none of a completion") from None

    async def end(self) -> None:
        """Nothing more comes.

        Raises:
            NoCompletion: something of the answer is missing.
        """
        if not self._answer.complete:
            raise NoCompletion("a stream ended without its usage, or without the end of an answer")

    def outcome(self, result: Answer | Exception | None) -> Answer | Exception:
        """What an attempt at the stream brought, as if a whole answer had been asked for."""
        if result is None:
            return Answer(200, orjson.dumps(self._answer.body()), is_json=True)
        if isinstance(result, StreamFailed):
            status = status_on(self.request.route, result.status or 500)
            body = reshaped(self.request.route, result.body)
            return Answer(status, body, is_json=result.status != 0)
        return result


def _streamed(request: InferenceRequest) -> InferenceRequest:
    """`request`, asking for a stream that reports its usage."""
    fields = {**request.fields, "stream": True}
    if request.route in (OPENAI_COMPLETIONS, OPENAI_CHAT_COMPLETIONS):  # others always do
        fields["stream_options"] = {"include_usage": True}
    return replace(request, body=orjson.dumps(fields), fields=fields, stream=True)
