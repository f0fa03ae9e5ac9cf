"""The answer to one job while the engine generates it: tokens in, text out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from protocol.errors import ApiError
from server.api.service import Delta, Job
from server.continuous_batching.outputs import AnswerDelta, PromptReport
from server.text.detokenizer import Detokenizer
from server.text.logprob import TokenLogprob
from server.text.vocabulary import Vocabulary


class JobStream:
    """The deltas of a job; a `DeltaStream`.

    The engine's side feeds it without waiting; a reader that is slow gets what piled up in one
    piece per answer.

    Args:
        job: what was asked for.
        vocabulary: bytes of each token.
        on_close: called once, when the reader is gone; the engine may forget the job.
    """

    def __init__(self, job: Job, vocabulary: Vocabulary, on_close: Callable[[], None]) -> None:
        self.job = job
        self.started = False
        self.queue_seconds: float | None = None
        """How long it waited before its first step."""
        self.cached_tokens = 0
        """Of its prompt, how many the prefix cache had then."""
        self.first_token_seconds: float | None = None
        """How long its first token took, where answers are given out whole."""
        self._loop = asyncio.get_running_loop()
        self.submitted_at = self._loop.time()
        self._on_close = on_close
        self._closed = False
        self._pending: deque[Delta] = deque()
        self._error: ApiError | None = None
        self._done = False
        self._reader: asyncio.Future[None] | None = None  # waits for news
        self._prompt: list[TokenLogprob] | None = None if job.config.prompt_logprobs is None else []
        self._begun: set[int] = set()  # answers of which a piece was given out, here or elsewhere
        shown = vocabulary.showing(job.shown_markers)
        self._writers = [Detokenizer(shown, job.config.stop) for _ in range(job.config.num_choices)]
        self._finished_before: set[int] = set()
        for index, choice in enumerate(job.resume or ()):
            if choice.token_ids:
                self._begun.add(index)
            if choice.finished:
                self._finished_before.add(index)
            elif job.config.num_beams == 1:
                self._writers[index].feed(choice.token_ids)  # its text was given out elsewhere

    # -- the engine's side -------------------------------------------------------------------

    def feed_prompt(self, report: PromptReport) -> None:
        """Take the report on the next tokens of the prompt."""
        if self._prompt is not None:
            self._prompt += report.logprobs

    def feed(self, answer: AnswerDelta) -> None:
        """Take the next tokens of an answer."""
        if answer.index in self._finished_before:
            return
        writer = self._writers[answer.index]
        text = writer.feed(answer.token_ids)
        if answer.finish_reason is not None:
            text += writer.finish()
        delta = Delta(
            answer.index,
            text,
            answer.token_ids,
            answer.finish_reason,
            answer.logprobs,
            queue_seconds=self.queue_seconds,
            first_token_seconds=self.first_token_seconds,
            cached_tokens=self.cached_tokens,
        )
        if answer.index not in self._begun:
            self._begun.add(answer.index)
            delta.prompt_logprobs = self._prompt
        self._pending.append(delta)
        self._wake()

    def end(self, error: ApiError | None = None) -> None:
        """Nothing more will come."""
        self._done, self._error = True, error
        self._wake()

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():  # else its task was cancelled
            reader.set_result(None)

    # -- the reader's side -------------------------------------------------------------------

    def __aiter__(self) -> JobStream:
        return self

    async def __anext__(self) -> Delta:
        while not self._pending:
            if self._error is not None:
                raise self._error
            if self._done:
                raise StopAsyncIteration
            self._reader = self._loop.create_future()
            await self._reader
        return self._pending.popleft()

    async def aclose(self) -> None:
        """Cancel the job where it still runs; safe at any time, repeatedly."""
        if not self._closed:
            self._closed = True
            self._on_close()
