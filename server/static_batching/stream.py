"""The answers of one job, which come all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from protocol.errors import ApiError
from server.api.service import Delta, Job
from server.text.offline import Answer


class AnswerStream:
    """The deltas of `job`: one for each answer, once its package is done.

    Args:
        job: what is answered.
        on_close: called when the answers are not wanted any more.
    """

    def __init__(self, job: Job, on_close: Callable[[], None]) -> None:
        self.job = job
        self._on_close = on_close
        self._answers: asyncio.Future[Sequence[Answer]] = asyncio.get_running_loop().create_future()
        # a failure of an abandoned answer is no news
        self._answers.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._given = 0

    def is_ended(self) -> bool:
        """Whether the answers are there, failed, or not wanted any more."""
        return self._answers.done()

    def finish(self, outcome: Sequence[Answer] | ApiError) -> None:
        """The answers are there, or will never be."""
        if self._answers.done():
            return
        if isinstance(outcome, ApiError):
            self._answers.set_exception(outcome)
        else:
            self._answers.set_result(outcome)

    def __aiter__(self) -> AnswerStream:
        return self

    async def __anext__(self) -> Delta:
        answers = await self._answers
        if self._given == len(answers):
            raise StopAsyncIteration
        index, answer = self._given, answers[self._given]
        self._given += 1
        return Delta(
            index,
            answer.text,
            answer.token_ids,
            answer.finish_reason,
            answer.logprobs,
            answer.prompt_logprobs,
        )

    async def aclose(self) -> None:
        self._answers.cancel()
        self._on_close()
