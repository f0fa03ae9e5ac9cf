"""The gateway's side of the connection to a client, over ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from client.watch import ClientGone
from protocol.errors import ApiError
from protocol.headers import REQUEST_ID
from protocol.sse import MEDIA_TYPE, event

Send = Callable[[Any], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

JSON = b"application/json"
_REQUEST_ID = REQUEST_ID.encode()
_STREAM_HEADERS: RawHeaders = [
    (b"content-type", MEDIA_TYPE.encode()),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # tells a reverse proxy not to hold events back
]


class Reply:
    """The one answer to a request, whole or as a stream."""

    __slots__ = ("_request_id", "_send", "failed", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = (_REQUEST_ID, request_id.encode("latin-1"))
        self.status = 0
        """0 until the answer has begun."""
        self.failed = False
        """Whether the answer is an error, or a stream that ended with one."""

    async def _message(self, message: dict[str, Any]) -> None:
        try:
            await self._send(message)
        except OSError as error:  # ASGI's way to say that the client left
            raise ClientGone from error

    async def whole(
        self,
        status: int,
        body: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self.status = status
        self.failed = status >= 400
        start: RawHeaders = [
            (b"content-type", JSON),
            (b"content-length", b"%d" % len(body)),
            self._request_id,
            *headers,
        ]
        await self._message({"type": "http.response.start", "status": status, "headers": start})
        await self._message({"type": "http.response.body", "body": body})

    async def piece(self, data: bytes) -> None:
        """The next bytes of a stream; waits while the client reads more slowly than they come."""
        if not self.status:
            self.status = 200
            headers = [*_STREAM_HEADERS, self._request_id]
            await self._message({"type": "http.response.start", "status": 200, "headers": headers})
        try:  # as `_message` does, without a coroutine more for every piece
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except OSError as error:
            raise ClientGone from error

    async def end(self) -> None:
        """The stream is complete."""
        await self._message({"type": "http.response.body", "body": b""})

    async def error(self, error: ApiError) -> None:
        """The request failed; within a stream this is an ``error`` event that ends it."""
        if self.status:
            await self.error_event(event(error.json(), name="error"))
            return
        headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
        await self.whole(error.status, error.json(), headers=headers)

    async def error_event(self, data: bytes) -> None:
        """End the stream with the ``error`` event `data`."""
        self.failed = True
        await self.piece(data)
        await self.end()
