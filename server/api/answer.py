"""Runs the jobs of a request and sends the answer, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from protocol import sse
from protocol.completion import Usage
from protocol.errors import ApiError, internal
from protocol.headers import STREAM_CHECKPOINT
from server.api.deltas import Coalescer, close_all, collect, merge, submit_all
from server.api.jobs import Call
from server.api.live import LiveRequests
from server.api.metrics import RequestMetrics
from server.api.service import Delta, Service
from server.api.shapes import Shape

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""Status under which a request is counted whose client went away (nginx's convention)."""


@dataclass(slots=True)
class Context:
    """What the routes work with."""

    service: Service
    metrics: RequestMetrics
    live: LiveRequests


@asynccontextmanager
async def running(context: Context, call: Call, request_id: str) -> AsyncIterator[AsyncGenerator[Delta]]:
    """The deltas of all jobs of `call`; leaving the context cancels what still runs."""
    with (
        context.live.register(request_id, len(call.prompts)) as ids,
        context.metrics.measure(call) as observe,
    ):
        streams = await submit_all(context.service, call.jobs(ids))
        try:
            async with aclosing(merge(streams, call.config.num_choices, observe)) as deltas:
                yield deltas
        finally:
            await close_all(streams)


async def answer(context: Context, request: Request, call: Call, shape: Shape) -> Response:
    """The response to `request`: generated already, or generating while it is sent."""
    request_id = request.state.request_id
    if call.stream:
        checkpoints = request.headers.get(STREAM_CHECKPOINT) == "1"
        return EventStream(context, request_id, call, shape, checkpoints)
    body = await unless_gone(request.receive, _whole(context, request_id, call, shape))
    if body is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(body, media_type="application/json")


async def _whole(context: Context, request_id: str, call: Call, shape: Shape) -> bytes:
    async with running(context, call, request_id) as deltas:
        answers = await collect(deltas, call.choices)
    completion_tokens = sum(len(delta.token_ids) for delta in answers)
    return shape.whole(answers, Usage.of(call.prompt_tokens, completion_tokens))


class EventStream(Response):
    """An answer as server-sent events.

    The status line waits for the first event: a failure before it is an ordinary error response,
    which a gateway can safely try elsewhere; one after it ends the stream with an error event.
    """

    media_type = sse.MEDIA_TYPE

    def __init__(
        self, context: Context, request_id: str, call: Call, shape: Shape, checkpoints: bool
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._context = context
        self._request_id = request_id
        self._call = call
        self._shape = shape
        self._checkpoints = checkpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        started = False
        end = b""
        try:
            async with running(self._context, self._call, self._request_id) as deltas:
                async for event in self._events(deltas):
                    if not started:
                        started = True
                        await send(
                            {
                                "type": "http.response.start",
                                "status": self.status_code,
                                "headers": self.raw_headers,
                            }
                        )
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        except ApiError as error:
            if not started:
                raise
            end = sse.event(error.json(), name="error")
        except Exception:
            if not started:
                raise
            logger.exception("request %s failed after its first event", self._request_id)
            end = sse.event(internal("the server failed to answer").json(), name="error")
        await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _events(self, deltas: AsyncGenerator[Delta]) -> AsyncGenerator[bytes]:
        shape, checkpoints, coalescer = self._shape, self._checkpoints, Coalescer()
        sent = already_sent(self._call)
        tokens = sum(map(len, sent))
        begun = {index for index, token_ids in enumerate(sent) if token_ids}
        async for piece in deltas:
            delta = coalescer.feed(piece)
            if delta is None:
                continue
            tokens += len(delta.token_ids)
            index = delta.index
            first = index not in begun
            begun.add(index)
            comments = b""
            if checkpoints:
                comments = sse.checkpoint(index, delta.token_ids, delta.finish_reason is not None)
            yield sse.event(shape.event(delta, first, tokens), comments=comments)
        last = shape.last_event(Usage.of(self._call.prompt_tokens, tokens))
        # in one piece: a stream that is cut between the two could not be continued exactly
        yield sse.DONE if last is None else sse.event(last) + sse.DONE


def already_sent(call: Call) -> Sequence[Sequence[int]]:
    """The tokens of each answer that an earlier server sent."""
    if call.resume is None:
        return [[]] * call.choices
    return [choice.token_ids for choice in call.resume.choices]


Result = TypeVar("Result")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """What `work` returns, or None where the client goes away first; then `work` is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
    return None if task.cancelled() else task.result()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
