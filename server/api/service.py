"""The seam between the HTTP routes and whatever generates tokens.

A `Service` takes one `Job` at a time (one prompt, all of its answers) and yields `Delta`s. The
routes in this package turn requests into jobs and deltas into the shape of each API; they do not
know which batching strategy runs behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from protocol.completion import FinishReason, ResumedChoice
from protocol.generation import GenerationConfig
from protocol.status import ServerStatus, ServiceKind
from server.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Job:
    """One prompt to be continued."""

    request_id: str
    prompt_token_ids: list[int]
    config: GenerationConfig
    priority: int = 0
    stream: bool = False
    """Deltas are wanted as they come; otherwise one delta per answer at the end is best."""
    resume: list[ResumedChoice] | None = None
    """Answers that another server began: their tokens are taken as generated, their text as sent."""


@dataclass(slots=True)
class TokenLogprob:
    """Log probability of one generated token and of the likeliest tokens at its place."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)
    """(token id, log probability), likeliest first."""


@dataclass(slots=True)
class Delta:
    """The next piece of one answer."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None


class Service(Protocol):
    """A model that is being served.

    `submit` validates at once: it raises `ApiError` (422 what can never be done, 429 a full
    queue, 503 not ready) before anything is queued. Errors later on (408 queue timeout, 503 lost
    engine) are raised by the iterator. Closing the iterator cancels the request and frees all it
    held.
    """

    kind: ServiceKind
    model_id: str
    tokenizer: Tokenizer
    model_max_length: int
    can_stream: bool

    def submit(self, job: Job) -> AsyncIterator[Delta]: ...

    def max_new_tokens(self, prompt_tokens: int, rows: int) -> int:
        """The most new tokens a request with that prompt may ask for; 0 where it cannot fit."""
        ...

    def status(self) -> ServerStatus: ...

    def cancel(self, request_id: str) -> bool:
        """Cancel by id (`DELETE /requests/{id}`); False where no such request lives."""
        ...
