"""How each API writes an answer: whole, and as the events of a stream.

Answers are plain dictionaries in the shape of the models in `protocol` (the tests validate every
one against them): a stream writes an event per token, and building a model for each would cost
more than all the rest of its path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from protocol.completion import Usage
from protocol.openai import StreamOptions
from server.api.logprobs import TextLogprobs, chat_logprobs
from server.api.service import Delta
from server.text.tokenizer import Tokenizer

Json = dict[str, Any]


class Shape(Protocol):
    """The answers of one request in the terms of one API, as JSON."""

    def event(self, delta: Delta, first: bool, tokens: int) -> bytes:
        """A stream's event for the next piece of an answer.

        Args:
            delta: the piece.
            first: nothing of its answer was sent yet.
            tokens: generated tokens of all answers that the stream has dealt with, with this piece.
        """
        ...

    def last_event(self, usage: Usage) -> bytes | None:
        """The event after all answers, where one is wanted."""
        ...

    def whole(self, answers: Sequence[Delta], usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        ...


class NativeShape:
    """``/completion/v1`` and ``/completion/v2``: `protocol.completion.CompletionResponse`."""

    def __init__(self, *, token_ids: bool, logprobs: TextLogprobs | None) -> None:
        self._token_ids = token_ids
        self._logprobs = logprobs

    def _choice(self, delta: Delta) -> Json:
        choice: Json = {"text": delta.text, "index": delta.index, "finish_reason": delta.finish_reason}
        if self._token_ids:
            choice["token_ids"] = delta.token_ids
        if self._logprobs is not None:
            choice["logprobs"] = self._logprobs.write(delta.index, delta.logprobs)
        return choice

    def event(self, delta: Delta, first: bool, tokens: int) -> bytes:
        return orjson.dumps({"choices": [self._choice(delta)]})

    def last_event(self, usage: Usage) -> bytes | None:
        return orjson.dumps({"choices": [], "usage": usage.model_dump()})

    def whole(self, answers: Sequence[Delta], usage: Usage) -> bytes:
        choices = [self._choice(delta) for delta in answers]
        return orjson.dumps({"choices": choices, "usage": usage.model_dump()})


@dataclass(slots=True, frozen=True)
class Envelope:
    """What stands around the answers on both OpenAI routes."""

    request_id: str
    created: int
    model: str
    prompt_tokens: int
    stream_options: StreamOptions | None = None


class _OpenAIShape:
    """What the two OpenAI routes share: the envelope, and usage in streams that ask for it."""

    def __init__(self, envelope: Envelope, prefix: str, kind: str) -> None:
        self._envelope: Json = {
            "id": f"{prefix}-{envelope.request_id}",
            "object": kind,
            "created": envelope.created,
            "model": envelope.model,
        }
        self._prompt_tokens = envelope.prompt_tokens
        options = envelope.stream_options or StreamOptions()
        self._usage_at_end = options.include_usage
        self._usage_always = options.continuous_usage_stats

    def _chunk(self, choice: Json, tokens: int) -> bytes:
        chunk = {**self._envelope, "choices": [choice]}
        if self._usage_always:
            chunk["usage"] = Usage.of(self._prompt_tokens, tokens).model_dump()
        elif self._usage_at_end:
            chunk["usage"] = None  # once it is asked for, every chunk has the field
        return orjson.dumps(chunk)

    def _whole(self, choices: list[Json], usage: Usage) -> bytes:
        return orjson.dumps({**self._envelope, "choices": choices, "usage": usage.model_dump()})

    def last_event(self, usage: Usage) -> bytes | None:
        return self._whole([], usage) if self._usage_at_end else None


class TextShape(_OpenAIShape):
    """``/v1/completions``: `protocol.openai.OpenAICompletionResponse`.

    Args:
        echo: the text to put before each answer (its prompt, where that is wanted).
    """

    def __init__(
        self, envelope: Envelope, *, echo: Sequence[str] | None, logprobs: TextLogprobs | None
    ) -> None:
        super().__init__(envelope, "cmpl", "text_completion")
        self._echo = echo
        self._logprobs = logprobs

    def _choice(self, delta: Delta, first: bool) -> Json:
        text = delta.text if self._echo is None or not first else self._echo[delta.index] + delta.text
        logprobs = None if self._logprobs is None else self._logprobs.write(delta.index, delta.logprobs)
        return {
            "index": delta.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
        }

    def event(self, delta: Delta, first: bool, tokens: int) -> bytes:
        return self._chunk(self._choice(delta, first), tokens)

    def whole(self, answers: Sequence[Delta], usage: Usage) -> bytes:
        return self._whole([self._choice(delta, True) for delta in answers], usage)


class ChatShape(_OpenAIShape):
    """``/v1/chat/completions``: `ChatCompletionResponse` and `ChatCompletionChunk`.

    The first chunk of an answer names the role beside its first text, so that whether the role was
    sent follows from whether any token was: a stream that is resumed never repeats it.
    """

    def __init__(self, envelope: Envelope, *, stream: bool, tokenizer: Tokenizer | None) -> None:
        super().__init__(envelope, "chatcmpl", "chat.completion.chunk" if stream else "chat.completion")
        self._tokenizer = tokenizer
        """Set where log probabilities are wanted."""

    def _logprobs(self, delta: Delta) -> Json | None:
        return None if self._tokenizer is None else chat_logprobs(self._tokenizer, delta.logprobs)

    def event(self, delta: Delta, first: bool, tokens: int) -> bytes:
        message: Json = {"content": delta.text} if delta.text or first else {}
        choice = {
            "index": delta.index,
            "delta": {"role": "assistant", **message} if first else message,
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
        }
        return self._chunk(choice, tokens)

    def whole(self, answers: Sequence[Delta], usage: Usage) -> bytes:
        choices = [
            {
                "index": delta.index,
                "message": {"role": "assistant", "content": delta.text, "refusal": None},
                "logprobs": self._logprobs(delta),
                "finish_reason": delta.finish_reason,
            }
            for delta in answers
        ]
        return self._whole(choices, usage)
