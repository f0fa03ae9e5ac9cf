"""Streams of engines that are not ours, and how one goes on where it was cut.

An engine that tells token ids (`client.engines.engine.TokenIds`) is asked for them; the client is not shown
them. A cut greedy completion goes on at another server of the same engine, which gets prompt and answer so
far as token ids. It begins at the last place where text and tokens are known to agree, because an engine may
hold back text (half a character) whose tokens it has sent. Text that the client already has is compared and
not sent again. Where an option looks at the answer as a whole (a penalty, a grammar, a stop string) that
place is the answer's beginning.
"""

from __future__ import annotations

import re

import orjson

from client.engines.engine import Engine, Json, TokenIds
from client.engines.errors import stream_error
from client.health.replica import Replica
from client.relay.engine_request import goes_on_anywhere, may_go_on, sent_body
from client.relay.progress import Progress
from client.relay.resume import Journal
from client.requests.request import InferenceRequest
from client.upstream.classify import BadAnswer, Diverged
from protocol.routes import ANTHROPIC_MESSAGES, OPENAI_RESPONSES
from protocol.sse import DONE, event

MAX_NEW_TOKENS = 16
"""Of a completion that sets no limit."""

_END = b"\n\n"
_DATA = b"data: {"
_ERROR = re.compile(rb'^(?:event: error\ndata: |data: (?=\{"error": ?[{"]))(.*)', re.MULTILINE)
_LAST = {
    OPENAI_RESPONSES: re.compile(rb"^event: response\.(completed|incomplete|failed)\n", re.MULTILINE),
    ANTHROPIC_MESSAGES: re.compile(rb"^event: message_stop\n", re.MULTILINE),
}
"""The events that end a stream, where that is not ``[DONE]``."""
_TEXT = b'"text":"'
_WITHOUT_TEXT = b'"text":""'
_UNFINISHED = b'"finish_reason":null'
"""As compact JSON has it; other JSON is read as a whole."""
_ODD = (orjson.JSONDecodeError, LookupError, TypeError, ValueError, AttributeError)
"""What reading an event raises that is none of a completion."""


def engine_stream(request: InferenceRequest, engine: Engine) -> EngineStream:
    """What takes the stream that `engine` answers `request` with."""
    if engine.token_ids is not None and may_go_on(request, engine):
        return TokenStream(request, engine, engine.token_ids)
    return EngineStream(request, engine)


class EngineStream(Journal):
    """A stream that ends with its server."""

    __slots__ = ("_engine", "_last")

    def __init__(self, request: InferenceRequest, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._last = _LAST.get(request.route)

    def feed(self, data: bytes) -> tuple[bytes, int]:
        data = self._tail + data
        if b"\r" in data:  # lines may end so in event streams
            data = data.replace(b"\r\n", b"\n")
        end = data.rfind(_END) + 2
        if end == 1:
            end = 0
        events, self._tail = data[:end], data[end:]
        if b"error" in events and (found := _ERROR.search(events)):
            events = events[: found.start()]
            self.error = event(stream_error(found[1]).json(), name="error")
        elif DONE in events or (self._last is not None and self._last.search(events)):
            self.done = True
        shown, tokens = self._pass_on(events)
        self.pieces += b"data:" in shown  # comments keep a connection open, and say nothing
        return shown, tokens

    def _pass_on(self, events: bytes) -> tuple[bytes, int]:
        """What the client gets of whole events, and how many tokens they stand for: one each or more."""
        return events, events.count(_DATA)

    def resumable(self, choices: int) -> bool:
        return False

    def goes_on(self, request: InferenceRequest, replica: Replica) -> bool:
        return False

    def body(self, request: InferenceRequest, replica: Replica) -> bytes:
        return sent_body(request, self._engine, {})


class TokenStream(EngineStream):
    """A greedy completion whose tokens are known."""

    __slots__ = ("_begun", "_blind", "_finished", "_first", "_progress", "_prompt", "_told")

    long_events = True

    def __init__(self, request: InferenceRequest, engine: Engine, told: TokenIds) -> None:
        super().__init__(request, engine)
        self._told = told
        self._progress = Progress(movable=goes_on_anywhere(request.fields))
        self._first: Json = {}
        """The first event: its id and time stand in all."""
        self._prompt: list[int] = []
        self._begun: int | None = None
        """Tokens of the answer that the present server got with its prompt; None: it is the first one."""
        self._finished = False
        self._blind = False
        """Whether there was text without its tokens."""

    def new_connection(self) -> None:
        super().new_connection()
        if self.pieces:
            self._progress.go_on()
            self._begun = len(self._progress.token_ids)

    def _pass_on(self, events: bytes) -> tuple[bytes, int]:
        shown: list[bytes] = []
        tokens = 0
        for one in _events(events):
            if not one.startswith(_DATA):
                shown.append(one)
                continue
            one, told = self._told.without(one, self._told.answer)
            ids = told or b""
            tokens += ids.count(b",") + bool(ids)
            if self._begun is None:
                shown.append(self._noted(one, ids))
            else:
                one, _ = self._told.without(one, self._told.prompt)
                try:
                    changed = self._continued(one, ids)
                except _ODD:
                    self._blind = True  # what came before it in `events` is lost
                    raise BadAnswer("an event is none of a completion") from None
                if changed:
                    shown.append(b"data: " + orjson.dumps(changed) + _END)
        return b"".join(shown), tokens

    def _noted(self, one: bytes, ids: bytes) -> bytes:
        """Take down an event of the first server; returns it as it was without token ids."""
        try:
            if not self._first:
                one, prompt = self._told.without(one, self._told.prompt)
                self._first = orjson.loads(one[6:])
                self._prompt = orjson.loads(b"[" + (prompt or b"") + b"]")
            self._note(one, ids)
        except _ODD:
            self._blind = True
        return one

    def _note(self, one: bytes, ids: bytes) -> None:
        if _agrees(one, ids) and self._progress.agree(ids):
            return
        for choice in orjson.loads(one[6:])["choices"]:
            self._blind = self._blind or (bool(choice["text"]) and not ids)
            self._finished = self._finished or choice["finish_reason"] is not None
            self._progress.beyond(ids, choice["text"])

    def _continued(self, one: bytes, ids: bytes) -> Json | None:
        """An event of a later server as the first one would have written it; None: the client has had it."""
        chunk: Json = orjson.loads(one[6:])
        chunk |= {name: self._first[name] for name in ("id", "created") if name in self._first}
        if usage := chunk.get("usage"):
            usage["prompt_tokens"] -= self._begun
            usage["completion_tokens"] += self._begun
        if not chunk["choices"]:
            return chunk
        (choice,) = chunk["choices"]
        text = self._progress.new_text(choice["text"])
        if not (_agrees(one, ids) and self._progress.agree(ids)):
            self._progress.beyond(ids, text)
        ends = choice["finish_reason"] is not None and not self._finished
        if choice["finish_reason"] is not None:
            if self._progress.overlap:
                raise Diverged
            self._finished = True
        choice["text"] = text
        return chunk if text or ends else None

    def resumable(self, choices: int) -> bool:
        return not self._blind and bool(self._prompt or not self._progress.token_ids)

    def goes_on(self, request: InferenceRequest, replica: Replica) -> bool:
        return replica.engine is self._engine

    def body(self, request: InferenceRequest, replica: Replica) -> bytes:
        changed: Json = {self._told.option: True}
        if self.pieces and (ids := self._progress.token_ids):
            changed["prompt"] = self._prompt + ids
            for name, value in (("max_tokens", MAX_NEW_TOKENS), ("min_tokens", 0)):
                limit = request.fields.get(name, value)
                if limit:  # null is the engine's own limit
                    changed[name] = max(0, limit - len(ids))
        return sent_body(request, self._engine, changed)


def _events(data: bytes) -> list[bytes]:
    """The events in `data`, which ends with one."""
    if data.find(_END) == len(data) - 2:  # as nearly always
        return [data]
    return [one + _END for one in data.split(_END)[:-1]]


def _agrees(one: bytes, ids: bytes) -> bool:
    """Whether an event's text is certainly that of its token: one token, and nothing is held back."""
    return (
        bool(ids)
        and b"," not in ids
        and _UNFINISHED in one
        and _TEXT in one
        and _WITHOUT_TEXT not in one  # in a text its quotes would be escaped
    )
