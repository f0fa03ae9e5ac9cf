"""One attempt of a request on one replica."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import orjson
from aiohttp.hdrs import CONTENT_TYPE
from multidict import CIMultiDict, istr

from client.classify import AnswerTimeout, BadAnswer, StreamFailed, Verdict, of_status
from client.config import GatewayConfig
from client.load import Lease
from client.metrics import Metrics
from client.replicas import Replica
from client.request import InferenceRequest
from client.resume import Journal
from client.upstream import MAX_ANSWER_BYTES, MAX_EVENT_BYTES, connect_timeout
from client.watch import ClientStalled, Watch
from protocol.headers import REQUEST_ID, RETRY_AFTER, SERVER_LOAD, SHOULD_RETRY, STREAM_CHECKPOINT
from protocol.sse import MEDIA_TYPE

# names that a header dictionary finds without folding their case first
_REQUEST_ID = istr(REQUEST_ID)
_CHECKPOINT = istr(STREAM_CHECKPOINT)
_LOAD = istr(SERVER_LOAD)

STREAM_END_SECONDS = 2.0
"""How long a server may keep the connection open after its last event before it is cut."""
JSON = "application/json"
LARGE_BODY = 2**18
PASSED_ON = (RETRY_AFTER.encode(), SHOULD_RETRY.encode())
"""Headers of an error that the client gets, too."""


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

    Runs within ``with watch:``; raises what `classify.of_error` judges.
    """

    session: aiohttp.ClientSession
    config: GatewayConfig
    clock: Callable[[], float]
    request: InferenceRequest
    replica: Replica
    lease: Lease
    watch: Watch
    metrics: Metrics

    async def run(self, body: bytes, sink: Sink, journal: Journal | None) -> Answer | None:
        """Send `body`. A stream goes to `sink` through `journal`; then the result is None."""
        headers = CIMultiDict({_REQUEST_ID: self.request.id})
        if journal is not None:
            headers[_CHECKPOINT] = "1"
        self.watch.phase(self.clock(), self.config.first_byte_timeout_seconds, AnswerTimeout)
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
            await self._stream(response, sink, journal)
        except BaseException:
            response.close()  # an unread answer must not go back to the pool
            raise
        return None

    def _note_load(self, response: aiohttp.ClientResponse) -> None:
        self.replica.heard_at = now = self.clock()
        pending = response.headers.get(_LOAD)
        if pending is not None and pending.isdecimal():
            self.replica.load.report_tokens(int(pending), now)

    async def _whole(self, response: aiohttp.ClientResponse) -> Answer:
        if (response.content_length or 0) > MAX_ANSWER_BYTES:
            raise BadAnswer(f"an answer of {response.content_length} bytes")
        self.watch.phase(self.clock(), self.config.idle_timeout_seconds, AnswerTimeout)
        body = await response.read()
        kind = _media_type(response)
        is_json = kind == JSON
        if response.status >= 400:
            headers = [(name, value) for name, value in response.raw_headers if name.lower() in PASSED_ON]
            return Answer(response.status, body, is_json, headers)
        if not is_json:
            raise BadAnswer(f"JSON was asked for, {kind} came")
        self.metrics.generated(_completion_tokens(body))
        return Answer(response.status, body, is_json)

    async def _stream(self, response: aiohttp.ClientResponse, sink: Sink, journal: Journal) -> None:
        """Hand on events until the stream's end; the connection may break between any two bytes."""
        clock, watch, content = self.clock, self.watch, response.content
        patience = self.config.client_timeout_seconds
        while not journal.done:
            silence = (
                self.config.idle_timeout_seconds if journal.pieces else self.config.first_byte_timeout_seconds
            )
            watch.phase(clock(), silence, AnswerTimeout)
            data = await content.readany()
            if not data:
                raise BadAnswer("the stream ended before its last event")
            self.replica.heard_at = now = clock()
            events, tokens = journal.feed(data)
            if tokens:
                self.lease.advance(tokens)
                self.metrics.generated(tokens)
            if events:
                watch.phase(now, patience, ClientStalled)
                if not sink.status:
                    self.metrics.stream_begun(now - watch.started)
                await sink.piece(events)
            elif journal.pending > MAX_EVENT_BYTES:
                raise BadAnswer("an event without an end")
            if journal.error is not None:
                raise StreamFailed(journal.error)
        await sink.end()
        await self._finish(response)

    async def _finish(self, response: aiohttp.ClientResponse) -> None:
        """Read to the end of the HTTP message, so that the connection can be used again."""
        self.watch.phase(self.clock(), float("inf"), AnswerTimeout)
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


def _completion_tokens(body: bytes) -> int:
    """Tokens that a completion says it generated; raises `BadAnswer` if it is no JSON object."""
    try:
        usage = orjson.loads(body)["usage"]
        tokens = usage["completion_tokens"]
    except orjson.JSONDecodeError as error:
        raise BadAnswer(f"the answer is not valid JSON: {error}") from None
    except (KeyError, TypeError):
        raise BadAnswer("the answer is no completion") from None
    return tokens if isinstance(tokens, int) else 0
