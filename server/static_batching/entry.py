"""A job between its arrival and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from protocol.errors import ApiError
from server.api.refusals import fault_of
from server.static_batching.batcher import QueuedRequest
from server.static_batching.prompts import Prompt
from server.static_batching.stream import AnswerStream
from server.text.offline import Answer


@dataclass(slots=True, eq=False)
class Entry:
    """A job that lives: it waits (then it is queued, with a deadline) or its package runs."""

    stream: AnswerStream
    work: int
    queued: QueuedRequest[Entry] | None = None
    deadline: asyncio.TimerHandle | None = None

    def prompt(self, on_step: Callable[[], None]) -> Prompt:
        """What the worker takes; `on_step` is called at each step, on its thread."""

        def is_ended() -> bool:
            on_step()
            return self.stream.is_ended()

        job = self.stream.job
        return Prompt(job.prompt_token_ids, job.config, is_ended, job.shown_markers)

    def finish(self, outcome: list[Answer] | ApiError) -> None:
        """Answer the job, or fail it; errors name options as the request does."""
        if isinstance(outcome, ApiError) and (option := outcome.body.param) is not None:
            outcome = fault_of(self.stream.job, option, outcome.body.message, outcome.body.code or "")
        self.stream.finish(outcome)
