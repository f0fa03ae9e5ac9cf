"""How ``/v1/messages`` writes an answer: blocks, and the events in which they come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson

from protocol.sse import Event
from server.api.chat.calls import CallIds
from server.api.service import Delta
from server.api.shapes import Envelope, TokenCounts
from server.text.detokenizer import Detokenizer
from server.text.formats.parts import CallArguments, CallBegin, Content, Part

Json = dict[str, Any]


class MessagesShape:
    """`protocol.messages.MessageAnswer`, and its events.

    Args:
        ids: of calls.
        stops: finds the stop string that ended the answer; None where there are none.
    """

    has_done = False
    counts_events = True

    def __init__(self, envelope: Envelope, ids: CallIds, stops: Detokenizer | None) -> None:
        self._envelope = envelope
        self._ids = ids
        self._stops = stops
        self._blocks: list[Json] = []
        self._inputs: list[str] = []  # of each block, the arguments of a call
        self._open = False

    # -- whole ---------------------------------------------------------------------------------

    def whole(self, answers: Sequence[Delta], counts: TokenCounts) -> bytes:
        (answer,) = answers
        for part in _parts(answer):
            self._take(part)
        self._close()
        reason, stop = self._end(answer)
        return orjson.dumps(
            {
                **self._message(counts),
                "content": self._blocks,
                "stop_reason": reason,
                "stop_sequence": stop,
            }
        )

    def _message(self, counts: TokenCounts) -> Json:
        return {
            "id": f"msg_{self._envelope.request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._envelope.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(counts),
        }

    def _end(self, delta: Delta) -> tuple[str, str | None]:
        """Stop reason and stop sequence of an answer that ended with `delta`."""
        if self._stops is not None:
            self._stops.feed(delta.token_ids)
        if delta.finish_reason == "length":
            return "max_tokens", None
        if self._stops is not None and self._stops.stop is not None:
            return "stop_sequence", self._stops.stop
        called = any(block["type"] == "tool_use" for block in self._blocks)
        return ("tool_use" if called else "end_turn"), None

    # -- streams -------------------------------------------------------------------------------

    def event(self, delta: Delta, first: bool, counts: TokenCounts) -> list[Event]:
        events: list[Json] = []
        if first:
            events.append({"type": "message_start", "message": self._message(counts._replace(completion=0))})
        for part in _parts(delta):
            events += self._take(part)
        if delta.finish_reason is None:
            if self._stops is not None:
                self._stops.feed(delta.token_ids)
        else:
            events += self._close()
            reason, stop = self._end(delta)
            end = {"stop_reason": reason, "stop_sequence": stop}
            events.append({"type": "message_delta", "delta": end, "usage": _usage(counts)})
            events.append({"type": "message_stop"})
        return [(event["type"], orjson.dumps(event)) for event in events] or [_PING]

    def last_event(self, counts: TokenCounts) -> None:
        return None

    # -- blocks --------------------------------------------------------------------------------

    def _take(self, part: Part) -> list[Json]:
        """Add `part` to the blocks; returns the events that tell of it."""
        if isinstance(part, CallBegin):
            call = {"type": "tool_use", "id": self._ids.of(0, part.index), "name": part.name, "input": {}}
            return self._close() + self._begin(call)
        if isinstance(part, CallArguments):
            self._inputs[-1] += part.text
            return [self._delta({"type": "input_json_delta", "partial_json": part.text})]
        kind = "text" if isinstance(part, Content) else "thinking"
        events: list[Json] = []
        if not self._open or self._blocks[-1]["type"] != kind:
            block = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
            events = self._close() + self._begin(block)
        self._blocks[-1][kind] += part.text
        return [*events, self._delta({"type": f"{kind}_delta", kind: part.text})]

    def _begin(self, block: Json) -> list[Json]:
        self._open = True
        self._blocks.append(block)
        self._inputs.append("")
        # a copy: the block grows until it is whole
        start = {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(block)}
        return [start]

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _close(self) -> list[Json]:
        if not self._open:
            return []
        self._open = False
        block = self._blocks[-1]
        if block["type"] == "tool_use":
            block["input"] = _object(self._inputs[-1])
        return [{"type": "content_block_stop", "index": len(self._blocks) - 1}]


_PING: Event = ("ping", b'{"type":"ping"}')


def _usage(counts: TokenCounts) -> Json:
    """Anthropic's clients add what was read from a cache to ``input_tokens``."""
    return {
        "input_tokens": counts.prompt - counts.cached,
        "output_tokens": counts.completion,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached,
    }


def _object(arguments: str) -> Json:
    """The arguments of a call; of one that the answer's limit cut nothing can be said but that."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _parts(delta: Delta) -> list[Part]:
    if delta.parts is not None:
        return delta.parts
    return [Content(delta.text)] if delta.text else []
