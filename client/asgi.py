"""The completion routes as a bare ASGI application, in front of the one that serves everything else.

Routing, validation and response classes of a framework cost several times what a relay itself
does; here a request meets none of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from client.gateway import Gateway, shutting_down
from client.keys import check_key
from client.reply import Reply, Send
from client.request import KINDS, read_request
from client.watch import ClientGone, ClientStalled, Receive, Watch
from protocol.errors import (
    ApiError,
    bad_request,
    body_too_large,
    internal,
    loop_detected,
    queue_full,
    queue_timeout,
)
from protocol.headers import HOPS, REQUEST_ID, STREAM_CHECKPOINT, parse_request_id

logger = logging.getLogger(__name__)

Scope = dict[str, Any]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

CLIENT_GONE = 499
"""The status under which requests whose client left are counted, as nginx does; never sent."""

ID_BYTES = 12
MAX_HOPS = 8
_REQUEST_ID = REQUEST_ID.encode()
_HOPS = HOPS.encode()
_CHECKPOINT = STREAM_CHECKPOINT.encode()


class Headers:
    """The request headers that the gateway looks at."""

    __slots__ = ("_values", "fault", "request_id")

    def __init__(self, raw: Iterable[tuple[bytes, bytes]], new_id: Callable[[], str]) -> None:
        self._values = dict(raw)
        self.fault: ApiError | None = None
        """The request is refused with it: its id cannot be one."""
        given = self._values.get(_REQUEST_ID)
        try:
            self.request_id = new_id() if given is None else parse_request_id(given)
        except ValueError as error:
            self.request_id, self.fault = new_id(), bad_request(str(error))

    @property
    def hops(self) -> int:
        """Gateways that the request has come through."""
        value = self._values.get(_HOPS, b"0")
        return int(value) if value.isdigit() else 0

    @property
    def content_length(self) -> int:
        """0 where the client does not say."""
        value = self._values.get(b"content-length", b"0")
        return int(value) if value.isdigit() else 0

    @property
    def checkpoints(self) -> bool:
        return self._values.get(_CHECKPOINT) == b"1"

    @property
    def authorization(self) -> bytes:
        return self._values.get(b"authorization", b"")


def random_ids() -> Iterator[str]:
    """Ids that nobody can guess; the system is asked for many at a time."""
    while True:
        block = os.urandom(256 * ID_BYTES).hex()
        for begin in range(0, len(block), 2 * ID_BYTES):
            yield block[begin : begin + 2 * ID_BYTES]


class CompletionFront:
    """Serves the completion routes of `gateway`; hands all other requests to `app`."""

    def __init__(self, gateway: Gateway, app: AsgiApp) -> None:
        self.gateway = gateway
        self._app = app
        self._new_id = random_ids().__next__

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in KINDS and scope["method"] == "POST":
            await self._complete(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway, route = self.gateway, scope["path"]
        gateway.metrics.received[route] += 1
        headers = Headers(scope["headers"], self._new_id)
        reply = Reply(send, headers.request_id)
        status = CLIENT_GONE
        watch = gateway.watchman.open(headers.request_id)
        try:
            try:
                await self._answer(route, headers, watch, receive, reply)
            except (ClientGone, ClientStalled):
                raise
            except Exception as error:
                await self._fail(error, watch, reply)
            status = reply.status
        except (ClientGone, ClientStalled):
            reply.failed = True  # the server closes the connection if it still stands
        finally:
            gateway.watchman.close(watch)
            gateway.metrics.finish(route, status, gateway.clock() - watch.started, reply.failed)

    async def _fail(self, error: Exception, watch: Watch, reply: Reply) -> None:
        """Tell the client of `error`."""
        if not isinstance(error, ApiError):
            logger.error("a request failed", exc_info=error)
            error = internal("the gateway failed; its log says why")
        watch.phase(self.gateway.clock(), self.gateway.settings.config.client_timeout_seconds, ClientStalled)
        with watch:
            await reply.error(error)

    async def _answer(
        self, route: str, headers: Headers, watch: Watch, receive: Receive, reply: Reply
    ) -> None:
        gateway = self.gateway
        config = gateway.settings.config
        if gateway.draining:
            raise shutting_down()
        if len(gateway.watchman.watches) > config.max_concurrent_requests:
            raise queue_full("the gateway is at its limit of concurrent requests")
        check_key(headers.authorization, config.api_keys)
        if headers.fault is not None:
            raise headers.fault
        hops = headers.hops
        if hops >= MAX_HOPS:
            message = f"the request came through {MAX_HOPS} gateways: an account leads back to one of them"
            raise loop_detected(message)
        body = await self._read_body(headers, watch, receive)
        watch.receive = receive
        request = read_request(headers.request_id, route, body, checkpoints=headers.checkpoints, hops=hops)
        await gateway.answer(request, watch, reply)

    async def _read_body(self, headers: Headers, watch: Watch, receive: Receive) -> bytes:
        config, clock = self.gateway.settings.config, self.gateway.clock
        limit = config.max_body_bytes
        if headers.content_length > limit:
            raise body_too_large(limit)
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                watch.phase(clock(), config.client_timeout_seconds, ClientStalled)
                with watch:
                    message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                if not parts and not message.get("more_body"):
                    if len(part) > limit:
                        raise body_too_large(limit)
                    return bytes(part)  # the common case: all of it at once
                size += len(part)
                if size > limit:
                    raise body_too_large(limit)
                parts.append(part)
                if not message.get("more_body"):
                    return b"".join(parts)
        except ClientStalled:
            raise queue_timeout("the body did not arrive in time") from None
