"""Streams of deltas: several joined into one, and pieces joined until there is something to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from server.api.service import Delta, DeltaStream, Job, Service
from server.text.formats.parts import join


async def close_all(streams: Sequence[DeltaStream | None]) -> None:
    """Cancel what still runs of every stream."""
    for stream in streams:
        if stream is not None:
            await stream.aclose()


async def submit_all(service: Service, jobs: Sequence[Job | None]) -> list[DeltaStream | None]:
    """Submit all jobs or none: where one is refused, the others are cancelled."""
    streams: list[DeltaStream | None] = []
    try:
        for job in jobs:
            streams.append(None if job is None else service.submit(job))  # noqa: PERF401
    except BaseException:
        await close_all(streams)
        raise
    return streams


class _Observed:
    """A stream of which each delta is told before it is given out.

    Less than a generator: this is passed once a token.
    """

    def __init__(self, stream: DeltaStream, observe: Callable[[Delta], None]) -> None:
        self._next = stream.__anext__
        self._observe = observe
        self.aclose = stream.aclose

    def __aiter__(self) -> _Observed:
        return self

    async def __anext__(self) -> Delta:
        delta = await self._next()
        self._observe(delta)
        return delta


def merge(streams: Sequence[DeltaStream | None], size: int, observe: Callable[[Delta], None]) -> DeltaStream:
    """The deltas of all streams as they come; answer i of stream k has index ``k * size + i``.

    Args:
        streams: one per prompt, None where there is nothing to come.
        size: answers per prompt.
        observe: called with each delta before it is given out.
    """
    if len(streams) == 1 and streams[0] is not None:  # nearly always: no queue, no task
        return _Observed(streams[0], observe)
    return _merge(streams, size, observe)


async def _merge(
    streams: Sequence[DeltaStream | None], size: int, observe: Callable[[Delta], None]
) -> AsyncGenerator[Delta]:
    queue: asyncio.Queue[Delta | Exception | None] = asyncio.Queue(maxsize=len(streams))
    pumps = [
        asyncio.create_task(_pump(stream, k * size, queue))
        for k, stream in enumerate(streams)
        if stream is not None
    ]
    running = len(pumps)
    try:
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                observe(item)
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(stream: DeltaStream, first: int, queue: asyncio.Queue[Delta | Exception | None]) -> None:
    try:
        async for delta in stream:
            delta.index += first
            await queue.put(delta)
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)


def extend(delta: Delta, more: Delta) -> None:
    """Append `more`, the next piece of the same answer, to `delta`."""
    delta.text += more.text
    delta.token_ids += more.token_ids
    delta.finish_reason = more.finish_reason
    delta.cached_tokens = more.cached_tokens
    if more.parts is not None:
        delta.parts = join(delta.parts or [], more.parts)
    if more.logprobs is not None:
        delta.logprobs = (delta.logprobs or []) + more.logprobs
    if more.prompt_logprobs is not None:
        delta.prompt_logprobs = more.prompt_logprobs


class Coalescer:
    """Keeps deltas back until they show something: text, or the end of the answer.

    The token ids and log probabilities of text that is held back (half a character, the beginning
    of a stop string) go out with the text that follows.
    """

    def __init__(self) -> None:
        self._held: dict[int, Delta] = {}

    def feed(self, delta: Delta) -> Delta | None:
        """What can be shown once `delta` has come, or None."""
        if self._held and (held := self._held.pop(delta.index, None)) is not None:
            extend(held, delta)
            delta = held
        if delta.text or delta.parts or delta.finish_reason:
            return delta
        self._held[delta.index] = delta
        return None


async def collect(deltas: DeltaStream, choices: int) -> list[Delta]:
    """Every answer in one piece, by index."""
    answers = [Delta(index, "", []) for index in range(choices)]
    async for delta in deltas:
        extend(answers[delta.index], delta)
    return answers
