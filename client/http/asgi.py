"""The completion routes as a bare ASGI application, in front of the one that serves everything else.

Routing, validation and response classes of a framework cost several times what a relay itself
does; here a request meets none of them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any

from client.config import GatewayConfig
from client.gateway import Gateway, shutting_down
from client.http.cache_salt import cache_salt
from client.http.keys import Caller, caller
from client.http.permissions import check_fields, check_headers
from client.requests.deadline import ClientGone, ClientStalled, Deadline, Receive
from client.requests.reply import Reply, Send
from client.requests.request import RELAYED, read_request
from protocol.errors import CLIENT_CLOSED_REQUEST, ApiError, loop_detected, queue_full, status_on
from protocol.headers import CACHE_SALT, HOPS, REQUEST_ID, STREAM_CHECKPOINT
from utils.access_log import AccessLog, Note
from utils.answers import HeadAsGet, closing
from utils.bodies import ClientLeft
from utils.http_errors import unexpected
from utils.keys import authorization
from utils.request_ids import random_ids, request_id
from utils.site_guard import SiteGuard

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_HOPS = 8
_REQUEST_ID = REQUEST_ID.encode()
_HOPS = HOPS.encode()
_CACHE_SALT = CACHE_SALT.encode()
_CHECKPOINT = STREAM_CHECKPOINT.encode()


class Headers:
    """The request headers that the gateway looks at."""

    __slots__ = ("_values", "fault", "request_id")

    def __init__(self, raw: Iterable[tuple[bytes, bytes]], new_ids: Iterator[str]) -> None:
        self._values = dict(raw)
        self.request_id, self.fault = request_id(self._values.get(_REQUEST_ID), new_ids)
        """The id, and the error with which the request is refused where its sender's cannot be one."""

    def hops(self) -> int:
        """Gateways that the request has come through; `check_headers` says what it raises."""
        return check_headers(self._values.get(_CHECKPOINT), self._values.get(_HOPS))

    def cache_salt(self, sender: Caller) -> str | None:
        """As the module of this name says."""
        return cache_salt(sender, self._values.get(_CACHE_SALT))

    def sender(self, config: GatewayConfig) -> Caller:
        """As `caller` says."""
        return caller(authorization(self._values.items()) if config.api_keys else b"", config)


def _is_completion(scope: Scope) -> bool:
    # the exact paths: whatever else a router might take for one of them meets the gate
    return scope["type"] == "http" and scope["path"] in RELAYED and scope["method"] == "POST"


class CompletionFront:
    """Serves the completion routes of `gateway`; hands all other requests to `app`, a `gate.Gate`.

    Args:
        host: the name or address that the gateway was set to listen on.
    """

    def __init__(self, gateway: Gateway, app: AsgiApp, host: str = "") -> None:
        self.gateway = gateway
        self._app = HeadAsGet(app)
        self._new_ids = random_ids()
        self._answering = 0
        self._guard = SiteGuard(self._route, lambda: gateway.settings.config, host)
        self._log = AccessLog(self._guard, lambda: gateway.settings.config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _is_completion(scope) and self._guard.passes(scope):
            return await self._complete(scope, receive, send, self._log.note)
        return await self._log(scope, receive, send)

    def _route(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if _is_completion(scope):
            return self._complete(scope, receive, send)
        return self._app(scope, receive, closing(send) if self.gateway.draining else send)

    async def _complete(self, scope: Scope, receive: Receive, send: Send, note: Note | None = None) -> None:
        """Answer a request, and `note` what came of it if nothing around this does."""
        gateway, route = self.gateway, scope["path"]
        gateway.metrics.received[route] += 1
        headers = Headers(scope["headers"], self._new_ids)
        status = CLIENT_CLOSED_REQUEST
        deadline = gateway.deadlines.open(headers.request_id)
        reply = Reply(send, headers.request_id, route, deadline.answered, lambda: gateway.draining)
        try:
            try:
                await self._admit(scope, headers, deadline, receive, reply)
            except (ClientGone, ClientStalled):
                raise
            except Exception as error:
                await self._fail(error, route, deadline, reply)
            status = reply.status
        except (ClientGone, ClientStalled):
            reply.failed = True  # the server closes the connection if it still stands
        finally:
            gateway.deadlines.close(deadline)
            seconds = gateway.clock() - deadline.started
            gateway.metrics.finish(route, status, seconds, reply.failed)
            if note is not None:
                note(scope, status, seconds, headers.request_id, reply.error_body)

    async def _fail(self, error: Exception, route: str, deadline: Deadline, reply: Reply) -> None:
        """Tell the client of `error`."""
        if not isinstance(error, ApiError):
            logger.error("a request failed", exc_info=error)
            error = unexpected("gateway")
        error.status = status_on(route, error.status)
        deadline.phase(
            self.gateway.clock(), self.gateway.settings.config.client_timeout_seconds, ClientStalled
        )
        with deadline:
            await reply.error(error)

    async def _admit(
        self, scope: Scope, headers: Headers, deadline: Deadline, receive: Receive, reply: Reply
    ) -> None:
        """Check, read and answer a request; its key and headers are checked before its body is read."""
        gateway = self.gateway
        config = gateway.settings.config
        if gateway.draining:
            raise shutting_down()
        sender = headers.sender(config)
        deadline.owner = sender.key
        if headers.fault is not None:
            raise headers.fault
        hops = headers.hops()
        if hops >= MAX_HOPS:
            message = f"the request came through {MAX_HOPS} gateways: an account leads back to one of them"
            raise loop_detected(message)
        self._check_places()
        with gateway.bodies.open(scope["headers"]) as body:
            deadline.phase(gateway.clock(), float("inf"), ClientStalled)
            try:
                with deadline:
                    data = await body.read(receive)
            except ClientLeft:
                raise ClientGone from None
            self._check_places()
            deadline.receive = receive
            salt = headers.cache_salt(sender)
            request = read_request(headers.request_id, scope["path"], data, hops=hops, cache_salt=salt)
            check_fields(request.fields, sender)
            self._answering += 1
            try:
                await gateway.answer(request, deadline, reply)
            finally:
                self._answering -= 1

    def _check_places(self) -> None:
        # who is still sending takes no place: bytes that drip in must not keep others out
        if self._answering >= self.gateway.settings.config.max_concurrent_requests:
            raise queue_full("the gateway is at its limit of concurrent requests")
