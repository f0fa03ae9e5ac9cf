"""How each API writes an answer: whole, and as the events of a stream.

Answers are plain dictionaries in the shape of the models in `protocol` (the tests validate every
one against them): a stream writes an event per token, and building a model for each would cost
more than all the rest of its path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from protocol.completion import Usage
from server.api.logprobs import TextLogprobs, chat_logprobs
from server.api.service import Delta
from server.text.tokenizer import Tokenizer

Json = dict[str, Any]


class Shape(Protocol):
    """The answers of one request in the terms of one API, as JSON."""

    def event(self, delta: Delta, first: bool) -> bytes:
        """A stream's event for the next piece of an answer; `first`: nothing of it was sent yet."""
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

    def event(self, delta: Delta, first: bool) -> bytes:
        return orjson.dumps({"choices": [self._choice(delta)]})

    def last_event(self, usage: Usage) -> bytes | None:
        return orjson.dumps({"choices": [], "usage": usage.model_dump()})

    def whole(self, answers: Sequence[Delta], usage: Usage) -> bytes:
        choices = [self._choice(delta) for delta in answers]
        return orjson.dumps({"choices": choices, "usage": usage.model_dump()})


class _OpenAIShape:
    """What the two OpenAI routes share: the envelope and the usage at the end of a stream."""

    def __init__(self, *, id: str, kind: str, created: int, model: str, include_usage: bool) -> None:
        self._envelope: Json = {"id": id, "object": kind, "created": created, "model": model}
        self._include_usage = include_usage
        # once usage is asked for, every chunk has the field, null but in the last
        self._chunk_end: Json = {"usage": None} if include_usage else {}

    def _chunk(self, choice: Json) -> bytes:
        return orjson.dumps({**self._envelope, "choices": [choice], **self._chunk_end})

    def _whole(self, choices: list[Json], usage: Usage) -> bytes:
        return orjson.dumps({**self._envelope, "choices": choices, "usage": usage.model_dump()})

    def last_event(self, usage: Usage) -> bytes | None:
        return self._whole([], usage) if self._include_usage else None


class TextShape(_OpenAIShape):
    """``/v1/completions``: `protocol.openai.OpenAICompletionResponse`.

    Args:
        echo: the text to put before each answer (its prompt, where that is wanted).
    """

    def __init__(
        self,
        *,
        request_id: str,
        created: int,
        model: str,
        include_usage: bool,
        echo: Sequence[str] | None,
        logprobs: TextLogprobs | None,
    ) -> None:
        super().__init__(
            id=f"cmpl-{request_id}",
            kind="text_completion",
            created=created,
            model=model,
            include_usage=include_usage,
        )
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

    def event(self, delta: Delta, first: bool) -> bytes:
        return self._chunk(self._choice(delta, first))

    def whole(self, answers: Sequence[Delta], usage: Usage) -> bytes:
        return self._whole([self._choice(delta, True) for delta in answers], usage)


class ChatShape(_OpenAIShape):
    """``/v1/chat/completions``: `ChatCompletionResponse` and `ChatCompletionChunk`.

    The first chunk of an answer names the role beside its first text, so that whether the role was
    sent follows from whether any token was: a stream that is resumed never repeats it.
    """

    def __init__(
        self,
        *,
        request_id: str,
        created: int,
        model: str,
        include_usage: bool,
        stream: bool,
        tokenizer: Tokenizer | None,
    ) -> None:
        super().__init__(
            id=f"chatcmpl-{request_id}",
            kind="chat.completion.chunk" if stream else "chat.completion",
            created=created,
            model=model,
            include_usage=include_usage,
        )
        self._tokenizer = tokenizer
        """Set where log probabilities are wanted."""

    def _logprobs(self, delta: Delta) -> Json | None:
        return None if self._tokenizer is None else chat_logprobs(self._tokenizer, delta.logprobs)

    def event(self, delta: Delta, first: bool) -> bytes:
        message: Json = {"content": delta.text} if delta.text or first else {}
        return self._chunk(
            {
                "index": delta.index,
                "delta": {"role": "assistant", **message} if first else message,
                "logprobs": self._logprobs(delta),
                "finish_reason": delta.finish_reason,
            }
        )

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
