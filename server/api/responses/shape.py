"""How ``/v1/responses`` writes an answer."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from protocol.responses import ResponsesRequest
from protocol.sse import Event
from server.api.chat.calls import CallIds
from server.api.responses.items import Items, Json
from server.api.service import Delta
from server.api.shapes import Envelope, TokenCounts
from server.text.formats.parts import Content, Part
from server.text.tokenizer import Tokenizer


class ResponsesShape:
    """`protocol.responses_answers.ResponsesAnswer`, and its events.

    Args:
        request: what was asked for; most of it is said again in the response.
        tokenizer: counts the tokens of reasoning.
    """

    has_done = False
    counts_events = True

    def __init__(
        self, envelope: Envelope, request: ResponsesRequest, tokenizer: Tokenizer, ids: CallIds
    ) -> None:
        self._envelope = envelope
        self._request = request
        self._tokenizer = tokenizer
        self._items = Items(envelope.request_id, ids)
        self._events = 0

    def event(self, delta: Delta, first: bool, counts: TokenCounts) -> list[Event]:
        events: list[Json] = []
        if first:
            response = self._response("in_progress", None)
            events += [
                {"type": "response.created", "response": response},
                {"type": "response.in_progress", "response": response},
            ]
        events += self._items.take(_parts(delta))
        if delta.finish_reason is not None:
            status = _status(delta)
            events += self._items.end(status)
            response = self._response(status, self._usage(counts))
            events.append({"type": f"response.{status}", "response": response})
        return [self._numbered(event) for event in events]

    def last_event(self, counts: TokenCounts) -> None:
        return None

    def whole(self, answers: Sequence[Delta], counts: TokenCounts) -> bytes:
        (answer,) = answers
        status = _status(answer)
        self._items.take(_parts(answer))
        self._items.end(status)
        return orjson.dumps(self._response(status, self._usage(counts)))

    def _numbered(self, event: Json) -> Event:
        number = self._events
        self._events += 1
        return event["type"], orjson.dumps({**event, "sequence_number": number})

    def _usage(self, counts: TokenCounts) -> Json:
        reasoning = self._items.reasoning
        thought = len(self._tokenizer.encode(reasoning, special=False)) if reasoning else 0
        return {
            "input_tokens": counts.prompt,
            "input_tokens_details": {"cached_tokens": counts.cached},
            "output_tokens": counts.completion,
            "output_tokens_details": {"reasoning_tokens": min(thought, counts.completion)},
            "total_tokens": counts.prompt + counts.completion,
        }

    def _response(self, status: str, usage: Json | None) -> Json:
        request, envelope = self._request, self._envelope
        asked = request.model_dump(
            mode="json", include=_SAID_AGAIN, exclude_none=True, exclude_unset=True, by_alias=True
        )
        return {
            "id": f"resp_{envelope.request_id}",
            "object": "response",
            "created_at": envelope.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": envelope.model,
            "output": list(self._items.done),
            "usage": usage,
            **_DEFAULTS,
            **asked,
        }


_DEFAULTS: Json = {
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "temperature": 1.0,
    "top_p": 1.0,
    "max_output_tokens": None,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": False,
    "text": {"format": {"type": "text"}},
    "truncation": "disabled",
    "user": None,
}
"""What a response says of fields that the request does not set. Nothing is stored, whatever `store` says."""

_SAID_AGAIN = set(_DEFAULTS) - {"store", "previous_response_id"}


def _parts(delta: Delta) -> list[Part]:
    if delta.parts is not None:
        return delta.parts
    return [Content(delta.text)] if delta.text else []


def _status(delta: Delta) -> str:
    return "incomplete" if delta.finish_reason == "length" else "completed"
