"""Runs the jobs of a request and sends the answer, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from protocol import sse
from protocol.error_shapes import error_body
from protocol.errors import CLIENT_CLOSED_REQUEST, ApiError, internal
from protocol.headers import CACHE_SALT, STREAM_CHECKPOINT
from server.api.deltas import close_all, collect, merge, submit_all
from server.api.jobs import Call, work
from server.api.live import LiveRequests
from server.api.metrics import RequestMetrics
from server.api.service import Delta, DeltaStream, Service
from server.api.shapes import Shape, TokenCounts
from server.api.writing import EventWriter, already_sent
from utils.http_pieces import PIECES, BodyPieces

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Context:
    """What the routes work with."""

    service: Service
    metrics: RequestMetrics
    live: LiveRequests


@asynccontextmanager
async def running(context: Context, call: Call, request_id: str) -> AsyncIterator[DeltaStream]:
    """The deltas of all jobs of `call`; leaving the context cancels what still runs."""
    with (
        context.live.register(request_id, len(call.prompts)) as ids,
        context.metrics.measure(call) as observe,
    ):
        streams = await submit_all(context.service, call.jobs(ids))
        try:
            made = merge(streams, call.config.num_choices, observe)
            async with aclosing(_empty(call, made) if call.empty else made) as deltas:
                yield deltas
        finally:
            await close_all(streams)


async def _empty(call: Call, made: DeltaStream) -> AsyncGenerator[Delta]:
    """Answers of which no token was asked for; `made` tells of their prompts, where that is wanted."""
    async with aclosing(made):
        reports = {delta.index: delta.prompt_logprobs async for delta in made}
    for index in range(call.choices):
        if call.resume is None or not call.resume.choices[index].finished:
            yield Delta(index, "", [], "length", prompt_logprobs=reports.get(index))


async def answer(context: Context, request: Request, call: Call, shape: Shape) -> Response:
    """The response to `request`: generated already, or generating while it is sent."""
    if (salt := request.headers.get(CACHE_SALT)) is not None:
        call.cache_salt = b"%d:%s%s" % (len(salt), salt.encode(), call.cache_salt)
    if call.stream:
        return EventStream(context, request, call, shape)
    body = await unless_gone(request.receive, _whole(context, request.state.request_id, call, shape))
    if body is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(body, media_type="application/json")


async def _whole(context: Context, request_id: str, call: Call, shape: Shape) -> bytes:
    async with running(context, call, request_id) as deltas:
        answers = await collect(deltas, call.choices)
    if call.reader is not None:
        for answer in answers:
            call.reader.read(answer)
    counts = TokenCounts(
        prompt=call.prompt_tokens,
        cached=sum(delta.cached_tokens for delta in answers[:: call.config.num_choices]),
        completion=sum(len(delta.token_ids) for delta in answers),
    )
    characters = 8 * call.prompt_reports + 4 * counts.completion
    return await work(characters, lambda: shape.whole(answers, counts))


class EventStream(Response):
    """An answer as server-sent events.

    The status line waits for the first event: a failure before it is an ordinary error response,
    which a gateway can safely try elsewhere; one after it ends the stream with an error event.
    """

    def __init__(self, context: Context, request: Request, call: Call, shape: Shape) -> None:
        super().__init__(headers=sse.HEADERS)
        del self.headers["content-length"]
        self._context = context
        self._request_id = request.state.request_id
        self._path = request.url.path
        self._call = call
        self._shape = shape
        self._checkpoints = request.headers.get(STREAM_CHECKPOINT) == "1"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._send(send, scope.get("extensions", {}).get(PIECES)))

    async def _send(self, send: Send, pieces: BodyPieces | None) -> None:
        started = False
        end = b""
        try:
            async with running(self._context, self._call, self._request_id) as deltas:
                writer = await self._writer()
                async for delta in deltas:
                    if delta.prompt_logprobs is None:
                        events = writer.write(delta)
                    else:
                        events = await work(8 * self._call.prompt_reports, partial(writer.write, delta))
                    if events is None:
                        continue
                    if not started:
                        started = True
                        await self._start(send)
                    if pieces is None or not pieces.write(events):
                        await send({"type": "http.response.body", "body": events, "more_body": True})
            end = writer.end()
            if not started:  # all that a resumed stream lacked was its end
                await self._start(send)
        except ApiError as error:
            if not started:
                raise
            end = self._error_event(error)
        except Exception:
            if not started:
                raise
            logger.exception("request %s failed after its first event", self._request_id)
            end = self._error_event(internal("the server failed to answer"))
        await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _writer(self) -> EventWriter:
        vocabulary = self._context.service.tokenizer.vocabulary
        characters = 4 * sum(map(len, already_sent(self._call)))  # about as many are written anew
        return await work(
            characters,
            lambda: EventWriter(self._call, self._shape, vocabulary, checkpoints=self._checkpoints),
        )

    async def _start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

    def _error_event(self, error: ApiError) -> bytes:
        """`error` as the stream's last event; a gateway puts it into the words of the route."""
        body = error.json() if self._checkpoints else error_body(self._path, error)
        return sse.event(body, name="error")


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
