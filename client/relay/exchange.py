"""One attempt of a request on one replica."""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import orjson
from aiohttp.hdrs import AUTHORIZATION, CONTENT_TYPE
from multidict import CIMultiDict, istr

from client.config import GatewayConfig
from client.engines.errors import engine_error
from client.health.load import Lease
from client.health.replica import Replica
from client.metrics.counters import Metrics
from client.relay.resume import Journal
from client.requests.deadline import ClientStalled, Deadline
from client.requests.request import GENERATING, InferenceRequest
from client.upstream.classify import AnswerTimeout, BadAnswer, StreamFailed, Verdict, of_status
from client.upstream.parse import count, digits, retry_after
from client.upstream.session import MAX_ANSWER_BYTES, MAX_EVENT_BYTES, connect_timeout, read_whole
from protocol.error_shapes import error_body
from protocol.errors import status_on
from protocol.headers import (
    CACHE_SALT,
    REQUEST_ID,
    RETRY_AFTER,
    SERVER_LOAD,
    SERVER_SAMPLING,
    SERVER_WEIGHTS,
    SHOULD_RETRY,
    STREAM_CHECKPOINT,
)
from protocol.sse import MEDIA_TYPE

# names that a header dictionary finds without folding their case first
_REQUEST_ID = istr(REQUEST_ID)
_CHECKPOINT = istr(STREAM_CHECKPOINT)
_LOAD = istr(SERVER_LOAD)
_CACHE_SALT = istr(CACHE_SALT)
_WEIGHTS = istr(SERVER_WEIGHTS)
_SAMPLING = istr(SERVER_SAMPLING)

STREAM_END_SECONDS = 2.0
"""How long a server may keep the connection open after its last event before it is cut."""
JSON = "application/json"
LARGE_BODY = 2**18


@dataclass(slots=True)
class Answer:
    """A whole answer, not yet sent to the client."""

    status: int
    body: bytes
    is_json: bool
    headers: Sequence[tuple[bytes, bytes]] = ()
    """Those of an error that the client gets, too."""

    def verdict(self) -> Verdict:
        return of_status(self.status, self.body)

    def __str__(self) -> str:
        return f"answered {self.status}"


class Sink(Protocol):
    """Where the events of a stream go: to the client (`reply.Reply`), or into a whole answer."""

    status: int
    """0 until the first came."""

    async def piece(self, data: bytes) -> None: ...

    async def end(self) -> None: ...


@dataclass(slots=True)
class Exchange:
    """Sends `request` to `replica` and brings back the answer, or hands it on if it is a stream.

    Runs within ``with deadline:``; raises what `classify.of_error` judges.
    """

    session: aiohttp.ClientSession
    config: GatewayConfig
    clock: Callable[[], float]
    request: InferenceRequest
    replica: Replica
    lease: Lease
    deadline: Deadline
    metrics: Metrics
    answering: Callable[[], None]
    """Called when the first of a good answer comes."""

    async def run(self, body: bytes, sink: Sink, journal: Journal | None) -> Answer | None:
        """Send `body`. A stream goes to `sink` through `journal`; then the result is None."""
        headers = CIMultiDict({_REQUEST_ID: self.request.id})
        if self.replica.engine is None:
            if journal is not None:
                headers[_CHECKPOINT] = "1"
            if self.request.cache_salt is not None:
                headers[_CACHE_SALT] = self.request.cache_salt
        if (secret := self.replica.credentials(self.config.server_key)) is not None:
            headers[AUTHORIZATION] = secret
        self.deadline.phase(self.clock(), self.config.first_byte_timeout_seconds, AnswerTimeout)
        url = self.replica.url_of(self.request.route)
        # a large body is written piece by piece, so that others have their turn in between
        payload = aiohttp.BytesPayload if len(body) < LARGE_BODY else _pieces
        response = await self.session.post(
            url,
            data=payload(body, content_type=JSON),
            headers=headers,
            allow_redirects=False,
            timeout=connect_timeout(self.config.connect_timeout_seconds),
        )
        try:
            self._note_load(response)
            if journal is None or response.status != 200:
                return await self._whole(response)
            if (kind := _media_type(response)) != MEDIA_TYPE:
                raise BadAnswer(f"a stream was asked for, {kind} came")
            journal.weights = response.headers.get(_WEIGHTS) or journal.weights
            if journal.sampling is None:
                journal.sampling = response.headers.get(_SAMPLING)
            await self._stream(response, sink, journal)
        except BaseException:
            response.close()  # an unread answer must not go back to the pool
            raise
        return None

    def _note_load(self, response: aiohttp.ClientResponse) -> None:
        self.replica.heard_at = now = self.clock()
        pending = digits(response.headers.get(_LOAD))
        if pending is not None:
            self.replica.load.report_tokens(pending, now)

    async def _whole(self, response: aiohttp.ClientResponse) -> Answer:
        status = response.status
        if status != 200 and not 400 <= status < 600:
            raise BadAnswer(f"answered with status {status}")
        self.deadline.phase(self.clock(), self.config.idle_timeout_seconds, AnswerTimeout)
        body = await read_whole(response, MAX_ANSWER_BYTES)
        kind = _media_type(response)
        if status >= 400:
            if self.replica.engine is not None:
                return self._engine_error(status, body, _passed_on(response))
            is_json = kind == JSON and _is_json(body)
            return Answer(status, body, is_json, _passed_on(response))
        if kind != JSON:
            raise BadAnswer(f"JSON was asked for, {kind} came")
        if self.request.route in GENERATING:
            self.metrics.generated(_completion_tokens(body, needed=self.replica.engine is None))
        self.replica.served_at = self.clock()
        self.answering()
        return Answer(status, body, is_json=True)

    def _engine_error(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> Answer:
        """An error of an engine that is not ours, as ours write it."""
        if status in (401, 403):
            raise BadAnswer(f"the server refuses the gateway's key ({status})")
        error = engine_error(status, body)
        error.status = status_on(self.request.route, status)
        return Answer(error.status, error_body(self.request.route, error), is_json=True, headers=headers)

    async def _stream(self, response: aiohttp.ClientResponse, sink: Sink, journal: Journal) -> None:
        """Hand on events until the stream's end; the connection may break between any two bytes."""
        clock, deadline, content = self.clock, self.deadline, response.content
        patience = self.config.client_timeout_seconds
        begun = False
        while not journal.done:
            silence = (
                self.config.idle_timeout_seconds if journal.pieces else self.config.first_byte_timeout_seconds
            )
            deadline.phase(clock(), silence, AnswerTimeout)
            data = await content.readany()
            if not data:
                raise BadAnswer("the stream ended before its last event")
            self.replica.heard_at = now = clock()
            events, tokens = journal.feed(data)
            if tokens:
                self.lease.advance(tokens)
                self.metrics.generated(tokens)
            if events:
                self.replica.served_at = now
                if not begun:
                    begun = True
                    self.answering()
                deadline.phase(now, patience, ClientStalled)
                if not sink.status:
                    self.metrics.stream_begun(now - deadline.started)
                await sink.piece(events)
            elif journal.pending > (
                MAX_ANSWER_BYTES
                if self.request.has_prompt_logprobs or journal.long_events
                else MAX_EVENT_BYTES
            ):
                raise BadAnswer("an event without an end")
            if journal.error is not None:
                raise StreamFailed(journal.error)
        await sink.end()
        await self._finish(response)

    async def _finish(self, response: aiohttp.ClientResponse) -> None:
        """Read to the end of the HTTP message, so that the connection can be used again."""
        self.deadline.phase(self.clock(), float("inf"), AnswerTimeout)
        try:
            async with asyncio.timeout(STREAM_END_SECONDS):
                while await response.content.readany():
                    pass
        except (aiohttp.ClientError, OSError):  # the latter includes TimeoutError
            response.close()  # the client has all it asked for


def _pieces(body: bytes, content_type: str) -> aiohttp.BytesIOPayload:
    return aiohttp.BytesIOPayload(io.BytesIO(body), content_type=content_type)


def _media_type(response: aiohttp.ClientResponse) -> str:
    """The content type without its parameters; aiohttp's own way to it costs a parser of mail headers."""
    return response.headers.get(CONTENT_TYPE, "").partition(";")[0].strip().lower()


def _passed_on(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    """Headers of an error that the client gets, too."""
    headers = []
    seconds = retry_after(response.headers.get(RETRY_AFTER), time.time())
    if seconds is not None:
        headers.append((RETRY_AFTER.encode(), b"%d" % math.ceil(seconds)))
    if response.headers.get(SHOULD_RETRY) == "false":
        headers.append((SHOULD_RETRY.encode(), b"false"))
    return headers


def _is_json(body: bytes) -> bool:
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return True


def _completion_tokens(body: bytes, *, needed: bool) -> int:
    """Tokens that a completion says it generated; raises `BadAnswer` if it is not JSON.

    Args:
        needed: whether it is no completion that does not say.
    """
    try:
        usage = orjson.loads(body)["usage"]
        tokens = usage["output_tokens"] if "output_tokens" in usage else usage["completion_tokens"]
    except orjson.JSONDecodeError as error:
        raise BadAnswer(f"the answer is not valid JSON: {error}") from None
    except (KeyError, TypeError):
        if needed:
            raise BadAnswer("the answer is not a completion") from None
        return 0
    return count(tokens) or 0
