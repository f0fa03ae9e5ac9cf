"""What differs between engines with OpenAI's API, as data: all that the gateway knows of one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from protocol.routes import OPENAI_CHAT_COMPLETIONS, OPENAI_COMPLETIONS

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class About:
    """What an engine tells of itself beside its models."""

    version: str | None = None
    slots: int | None = None
    """Requests that it works on at once."""


@dataclass(frozen=True, slots=True)
class Gauges:
    """Names of what an engine tells of its load in ``/metrics``."""

    running: str
    waiting: str
    cache_usage: str | None = None
    """Share of its cache in use, 0 to 1."""


@dataclass(frozen=True)
class TokenIds:
    """How an engine tells the token ids of a stream of ``/v1/completions``.

    Each choice of a chunk has those of its text, the first chunk also those of the prompt.
    """

    option: str
    """Field of a request, true to get them."""
    answer: str
    """Field of a choice."""
    prompt: str
    null: bool
    """Whether the fields are null where they were not asked for, or left out."""

    def without(self, event: bytes, name: str) -> tuple[bytes, bytes | None]:
        """`event` as the engine writes it where ids are not asked for, and the ids of a field.

        Args:
            name: `answer` or `prompt`. Within a text its quotes would be escaped.
        """
        found = self._patterns[name].search(event)
        if found is None:
            return event, None
        begin, end = found.span(1)
        if self.null:
            return event[: begin - 1] + b"null" + event[end + 1 :], found[1]
        return event[: found.start()] + event[end + 1 :], found[1]

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[bytes]]:
        before = b"" if self.null else b","
        return {
            name: re.compile(rb'%s"%s": ?\[([\d, ]*)\]' % (before, name.encode()))
            for name in (self.answer, self.prompt)
        }


def _nothing(answer: Json) -> About:
    return About()


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine. What is None it does not have."""

    name: str
    """As people call it."""
    routes: tuple[str, ...] = (OPENAI_COMPLETIONS, OPENAI_CHAT_COMPLETIONS)
    """Which of the gateway's routes it has, with the same meaning."""
    gauges: Gauges | None = None
    alive: str | None = None
    """A route that answers 503 while its models are listed but cannot be used."""
    about: str | None = None
    """A route that tells more of it."""
    read_about: Callable[[Json], About] = _nothing
    """Reads the answer of `about`; whatever it raises means that there is nothing to read."""
    token_ids: TokenIds | None = None
    salted_routes: tuple[str, ...] = ()
    """Where a request's `cache_salt` keeps its cached prompt from others."""
