"""The gateway's side of the connection to a client, over ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from client.requests.deadline import ClientGone
from protocol.error_shapes import error_body, reshaped
from protocol.errors import ApiError
from protocol.headers import REQUEST_ID
from protocol.sse import HEADERS, event
from utils.answers import CLOSE

Send = Callable[[Any], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

JSON = b"application/json"
_REQUEST_ID = REQUEST_ID.encode()
_STREAM_HEADERS: RawHeaders = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class Reply:
    """The one answer to a request, whole or as a stream.

    Args:
        send: ASGI's.
        request_id: of the request.
        route: of the request.
        on_end: called when the client has been sent all of it.
        is_last: returns whether to close the connection after this answer; called when the answer begins.
    """

    __slots__ = ("_is_last", "_on_end", "_request_id", "_route", "_send", "error_body", "failed", "status")

    def __init__(
        self,
        send: Send,
        request_id: str,
        route: str,
        on_end: Callable[[], None],
        is_last: Callable[[], bool],
    ) -> None:
        self._is_last = is_last
        self._send = send
        self._on_end = on_end
        self._route = route
        self._request_id = (_REQUEST_ID, request_id.encode("latin-1"))
        self.status = 0
        """0 until the answer has begun."""
        self.failed = False
        """Whether the answer is an error, or a stream that ended with one."""
        self.error_body = b""
        """The answer, if it is an error and no stream."""

    async def _message(self, message: dict[str, Any]) -> None:
        try:
            await self._send(message)
        except OSError as error:  # ASGI's way to say that the client left
            raise ClientGone from error

    async def _begin(self, headers: RawHeaders) -> None:
        if self._is_last():
            headers.append(CLOSE)
        await self._message({"type": "http.response.start", "status": self.status, "headers": headers})

    async def whole(
        self,
        status: int,
        body: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self.status = status
        if status >= 400:
            self.failed, self.error_body = True, body
        start: RawHeaders = [
            (b"content-type", JSON),
            (b"content-length", b"%d" % len(body)),
            self._request_id,
            *headers,
        ]
        await self._begin(start)
        await self._message({"type": "http.response.body", "body": body})
        self._on_end()

    async def piece(self, data: bytes) -> None:
        """The next bytes of a stream; waits while the client reads more slowly than they come."""
        if not self.status:
            self.status = 200
            await self._begin([*_STREAM_HEADERS, self._request_id])
        try:  # as `_message` does, without a coroutine more for every piece
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except OSError as error:
            raise ClientGone from error

    async def end(self) -> None:
        """The stream is complete."""
        await self._message({"type": "http.response.body", "body": b""})
        self._on_end()

    async def error(self, error: ApiError) -> None:
        """The request failed; within a stream this is an ``error`` event that ends it."""
        if self.status:
            await self.error_event(error.json())
            return
        headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
        await self.whole(error.status, error_body(self._route, error), headers=headers)

    async def error_event(self, error: bytes) -> None:
        """End the stream with an ``error`` event.

        Args:
            error: its data, as servers write it for gateways.
        """
        self.failed = True
        await self.piece(event(reshaped(self._route, error), name="error"))
        await self.end()
