"""How each API writes an answer: whole, and as the events of a stream.

Answers are plain dictionaries in the shape of the models in `protocol` (the tests validate every
one against them): a stream writes an event per token, and building a model for each would cost
more than all the rest of its path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import orjson

from protocol.completion import Usage
from protocol.openai import StreamOptions
from protocol.sse import Event
from server.api.logprobs import TextLogprobs, prompt_logprobs
from server.api.service import Delta
from server.text.tokenizer import Tokenizer

Json = dict[str, Any]


class TokenCounts(NamedTuple):
    """Tokens of a request as far as it is answered; a prompt counts once, however many answers it has."""

    prompt: int
    cached: int
    """Those of the prompts that the prefix cache had."""
    completion: int


class Shape(Protocol):
    """The answers of one request in the terms of one API, as JSON."""

    has_done: bool
    """Whether its streams end with ``[DONE]``; otherwise with the events of the last piece."""
    counts_events: bool
    """Whether events depend on those before: a stream that is resumed is then written anew, unsent, up
    to where it was cut."""

    def event(self, delta: Delta, first: bool, counts: TokenCounts) -> list[Event]:
        """A stream's events for the next piece of an answer; at least one.

        Args:
            delta: the piece.
            first: nothing of its answer was sent yet.
            counts: what the stream has dealt with, with this piece.
        """
        ...

    def last_event(self, counts: TokenCounts) -> bytes | None:
        """The event after all answers, where one is wanted."""
        ...

    def whole(self, answers: Sequence[Delta], counts: TokenCounts) -> bytes:
        """The body of an answer that is not streamed."""
        ...


class PromptTold:
    """``prompt_logprobs`` of an answer: with its first piece.

    Args:
        tokenizer: gives the text of tokens.
        top: how many of the likeliest tokens to tell; None: nothing is.
    """

    def __init__(self, tokenizer: Tokenizer, top: int | None) -> None:
        self._tokenizer = tokenizer
        self._top = top

    def fields(self, delta: Delta) -> Json:
        """The field, where `delta` has something to tell of the prompt."""
        if self._top is None or delta.prompt_logprobs is None:
            return {}
        return {"prompt_logprobs": prompt_logprobs(self._tokenizer, delta.prompt_logprobs, self._top)}


class TokensTold:
    """``return_token_ids`` of OpenAI's routes: the tokens of answers and prompts, as vLLM tells them.

    Args:
        prompts: tokens of each prompt.
        size: answers of each.
        wanted: whether anything is told.
    """

    def __init__(self, prompts: Sequence[list[int]], size: int, *, wanted: bool) -> None:
        self._prompts = prompts
        self._size = size
        self.wanted = wanted

    def answer(self, token_ids: Sequence[int]) -> Json:
        """The field of a piece of an answer."""
        return {"token_ids": token_ids} if self.wanted else {}

    def prompt(self, index: int) -> Json:
        """The field of the prompt of answer `index`."""
        return {"prompt_token_ids": self._prompts[index // self._size]} if self.wanted else {}


class NativeShape:
    """``/completion/v1`` and ``/completion/v2``: `protocol.completion.CompletionResponse`."""

    has_done = True
    counts_events = False

    def __init__(self, *, token_ids: bool, logprobs: TextLogprobs | None, prompt: PromptTold) -> None:
        self._token_ids = token_ids
        self._logprobs = logprobs
        self._prompt = prompt

    def _choice(self, delta: Delta) -> Json:
        choice: Json = {"text": delta.text, "index": delta.index, "finish_reason": delta.finish_reason}
        if self._token_ids:
            choice["token_ids"] = delta.token_ids
        if self._logprobs is not None:
            choice["logprobs"] = self._logprobs.write(delta.index, delta.logprobs)
        return choice if delta.prompt_logprobs is None else choice | self._prompt.fields(delta)

    def event(self, delta: Delta, first: bool, counts: TokenCounts) -> list[Event]:
        return [(None, orjson.dumps({"choices": [self._choice(delta)]}))]

    def last_event(self, counts: TokenCounts) -> bytes | None:
        return orjson.dumps({"choices": [], "usage": _usage(counts)})

    def whole(self, answers: Sequence[Delta], counts: TokenCounts) -> bytes:
        choices = [self._choice(delta) for delta in answers]
        return orjson.dumps({"choices": choices, "usage": _usage(counts)})


def _usage(counts: TokenCounts) -> Json:
    return Usage.of(counts.prompt, counts.completion).model_dump()


@dataclass(slots=True, frozen=True)
class Envelope:
    """What stands around the answers on both OpenAI routes."""

    request_id: str
    created: int
    model: str
    stream_options: StreamOptions | None = None
    fingerprint: str | None = None
    """Of the weights."""


class OpenAIShape:
    """What the two OpenAI routes share: the envelope, and usage in streams that ask for it."""

    has_done = True
    counts_events = False

    def __init__(self, envelope: Envelope, prefix: str, kind: str) -> None:
        self._envelope: Json = {
            "id": f"{prefix}-{envelope.request_id}",
            "object": kind,
            "created": envelope.created,
            "model": envelope.model,
            "system_fingerprint": envelope.fingerprint,
        }
        options = envelope.stream_options or StreamOptions()
        self._usage_at_end = options.include_usage
        self._usage_always = options.continuous_usage_stats

    def _chunk(self, choice: Json, counts: TokenCounts, more: Json | None = None) -> bytes:
        """An event with `choice`, and with `more` beside it."""
        chunk = {**self._envelope, "choices": [choice]}
        if more:
            chunk |= more
        if self._usage_always:
            chunk["usage"] = _openai_usage(counts)
        elif self._usage_at_end:
            chunk["usage"] = None  # once it is asked for, every chunk has the field
        return orjson.dumps(chunk)

    def _whole(self, choices: list[Json], counts: TokenCounts, more: Json | None = None) -> bytes:
        body = {**self._envelope, "choices": choices, "usage": _openai_usage(counts)}
        return orjson.dumps(body | (more or {}))

    def last_event(self, counts: TokenCounts) -> bytes | None:
        return self._whole([], counts) if self._usage_at_end else None


def _openai_usage(counts: TokenCounts) -> Json:
    return {**_usage(counts), "prompt_tokens_details": {"cached_tokens": counts.cached}}


@dataclass(slots=True, frozen=True)
class Echo:
    """A prompt that is given back before its answer."""

    text: str
    first_token: int


class TextShape(OpenAIShape):
    """``/v1/completions``: `protocol.openai_answers.OpenAICompletionResponse`.

    Args:
        echo: what to put before each answer (its prompt, where that is wanted).
        logprobs: writes those of the answers, and of what is echoed.
        top: how many of the likeliest tokens to tell of what is echoed.
        prompt: writes ``prompt_logprobs``.
        tokens: writes ``token_ids`` and ``prompt_token_ids``.
    """

    def __init__(
        self,
        envelope: Envelope,
        *,
        echo: Sequence[Echo] | None,
        logprobs: TextLogprobs | None,
        top: int = 0,
        prompt: PromptTold,
        tokens: TokensTold,
    ) -> None:
        super().__init__(envelope, "cmpl", "text_completion")
        self._tokens = tokens
        self._echo = echo
        self._logprobs = logprobs
        self._top = top
        self._prompt = prompt

    def _choice(self, delta: Delta, first: bool) -> Json:
        text, logprobs = delta.text, None
        if self._logprobs is not None:
            logprobs = self._logprobs.write(delta.index, delta.logprobs)
        if first and self._echo is not None:
            echo = self._echo[delta.index]
            text = echo.text + text
            if self._logprobs is not None:
                known = self._logprobs.write_echo(
                    echo.text, echo.first_token, delta.prompt_logprobs or (), self._top
                )
                logprobs = {name: known[name] + values for name, values in (logprobs or {}).items()}
        choice: Json = {
            "index": delta.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
        }
        if delta.prompt_logprobs is not None:
            choice |= self._prompt.fields(delta)
        if self._tokens.wanted:
            choice |= self._tokens.answer(delta.token_ids)
            if first:
                choice |= self._tokens.prompt(delta.index)
        return choice

    def event(self, delta: Delta, first: bool, counts: TokenCounts) -> list[Event]:
        return [(None, self._chunk(self._choice(delta, first), counts))]

    def whole(self, answers: Sequence[Delta], counts: TokenCounts) -> bytes:
        return self._whole([self._choice(delta, True) for delta in answers], counts)
