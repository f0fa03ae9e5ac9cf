"""The events of a stream put together to the body of a whole answer, for each of the APIs."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any, Protocol

from protocol.routes import ANTHROPIC_MESSAGES, OPENAI_RESPONSES

Json = dict[str, Any]

_CHUNK = "chat.completion.chunk"
_WHOLE = "chat.completion"
_OF_PROMPT = ("prompt_logprobs", "prompt_token_ids")
"""What a chat tells of its prompt, beside its choices."""


class WholeAnswer(Protocol):
    """A body while it is made."""

    def take(self, event: Json) -> None:
        """The next event.

        Raises:
            LookupError, TypeError, AttributeError: it is none of such an answer.
        """
        ...

    @property
    def complete(self) -> bool:
        """Whether all of the answer has come."""
        ...

    def body(self) -> Json:
        """The answer, once it is complete."""
        ...


def whole_answer(route: str, choices: int) -> WholeAnswer:
    """The body of an answer on `route`, its choices still empty."""
    if route == OPENAI_RESPONSES:
        return Response()
    return Message() if route == ANTHROPIC_MESSAGES else Completion(choices)


class Completion:
    """Native and OpenAI completions, and chats: choices, and what stands around them."""

    def __init__(self, choices: int) -> None:
        self._expected = choices
        self._choices: dict[int, _Choice] = {}
        self._last: Json | None = None
        self._prompt: Json = {}

    def take(self, event: Json) -> None:
        for choice in event["choices"]:
            index = choice["index"]
            if not 0 <= index < self._expected:
                raise IndexError(index)
            self._choices.setdefault(index, _Choice()).extend(choice)
        self._prompt |= {name: event[name] for name in _OF_PROMPT if name in event}
        if event.get("usage") is not None:
            self._last = event

    @property
    def complete(self) -> bool:
        finished = sum(choice.finished for choice in self._choices.values())
        return self._last is not None and finished == self._expected

    def body(self) -> Json:
        """The last event, which has all that stands around the choices, with the choices."""
        choices = [choice.whole() for _, choice in sorted(self._choices.items())]
        body = {**(self._last or {}), "choices": choices, **self._prompt}
        if body.get("object") == _CHUNK:
            body["object"] = _WHOLE
        return body


class _Choice:
    """One answer: the fields of its first event, to which those that follow add."""

    __slots__ = ("_calls", "_fields", "_reasoning", "_text")

    def __init__(self) -> None:
        self._fields: Json = {}
        self._text = StringIO()
        self._reasoning = StringIO()
        self._calls: list[Json] = []

    @property
    def finished(self) -> bool:
        return self._fields.get("finish_reason") is not None

    def extend(self, piece: Json) -> None:
        """Take the next piece, in the shape of any of the routes."""
        delta = piece.get("delta")
        self._text.write(piece["text"] if delta is None else delta.get("content") or "")
        if delta is not None:
            self._reasoning.write(delta.get("reasoning_content") or "")
            for call in delta.get("tool_calls") or ():
                self._extend_call(call)
        if not self._fields:
            self._fields = piece
            return
        self._fields["finish_reason"] = piece["finish_reason"]
        if "token_ids" in piece:
            self._fields["token_ids"] += piece["token_ids"]
        for name, values in (piece.get("logprobs") or {}).items():
            if self._fields.get("logprobs") is None:  # the first piece named the role alone
                self._fields["logprobs"] = dict.fromkeys(piece["logprobs"])
            if values is not None:
                self._fields["logprobs"][name] = (self._fields["logprobs"][name] or []) + values

    def _extend_call(self, call: Json) -> None:
        if "id" in call:
            self._calls.append({name: value for name, value in call.items() if name != "index"})
        else:
            self._calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]

    def whole(self) -> Json:
        """The answer as it stands in a whole body."""
        text = self._text.getvalue()
        if "delta" not in self._fields:
            return {**self._fields, "text": text}
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if self._calls:
            message["content"] = text or None
        if reasoning := self._reasoning.getvalue():
            message["reasoning_content"] = reasoning
        if self._calls:
            message["tool_calls"] = self._calls
        fields = {name: value for name, value in self._fields.items() if name != "delta"}
        return {**fields, "message": message}


class Response:
    """OpenAI's responses: the last event has the whole answer."""

    def __init__(self) -> None:
        self._response: Json | None = None

    def take(self, event: Json) -> None:
        if event["type"] in ("response.completed", "response.incomplete"):
            self._response = event["response"]

    @property
    def complete(self) -> bool:
        return self._response is not None

    def body(self) -> Json:
        return self._response or {}


class Message:
    """Anthropic's messages: blocks that begin, grow and end."""

    def __init__(self) -> None:
        self._message: Json = {}
        self._inputs: list[str] = []
        self._ended = False

    def take(self, event: Json) -> None:
        kind = event["type"]
        if kind == "message_start":
            self._message = event["message"]
        elif kind == "content_block_start":
            self._message["content"].append(event["content_block"])
            self._inputs.append("")
        elif kind == "content_block_delta":
            self._grow(event["delta"])
        elif kind == "content_block_stop":
            self._end_block()
        elif kind == "message_delta":
            self._message |= {**event["delta"], "usage": event["usage"]}
        elif kind == "message_stop":
            self._ended = True

    def _grow(self, delta: Json) -> None:
        if delta["type"] == "input_json_delta":
            self._inputs[-1] += delta["partial_json"]
            return
        name = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
        field = name[delta["type"]]
        self._message["content"][-1][field] += delta[field]

    def _end_block(self) -> None:
        block = self._message["content"][-1]
        if block["type"] == "tool_use":
            try:
                block["input"] = json.loads(self._inputs[-1])
            except ValueError:  # the answer's limit cut it
                block["input"] = {}

    @property
    def complete(self) -> bool:
        return self._ended

    def body(self) -> Json:
        return self._message
