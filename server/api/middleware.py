"""Pure ASGI middleware: a limit on bodies; and a name, a count and a duration for each request."""

from __future__ import annotations

import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.errors import bad_request, body_too_large
from protocol.headers import REQUEST_ID, SERVER_LOAD, parse_request_id
from server.api.errors import error_response
from server.api.metrics import HttpMetrics
from server.api.service import Service


class BodyLimit:
    """Answers 413 to a body above `limit` bytes, as soon as that is known."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._limit:
                return await error_response(body_too_large(self._limit))(scope, receive, send)
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise body_too_large(self._limit)
            return message

        return await self._app(scope, limited, send)


class Envelope:
    """Gives each request its id, and each answer the headers that every answer has.

    The id is the sender's ``x-request-id``, or a new one; routes find it in
    ``scope["state"]["request_id"]``.
    """

    def __init__(self, app: ASGIApp, service: Service, metrics: HttpMetrics) -> None:
        self._app = app
        self._service = service
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start = time.perf_counter()
        status = 499  # nothing sent: the client had gone

        async def wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                if scope["method"] == "POST":
                    headers[SERVER_LOAD] = str(self._service.pending_tokens)
            await send(message)

        request_id = uuid.uuid4().hex
        try:
            request_id = _given_id(scope) or request_id
        except ValueError as wrong:
            return await error_response(bad_request(str(wrong)))(scope, receive, wrapped)
        scope.setdefault("state", {})["request_id"] = request_id
        try:
            return await self._app(scope, receive, wrapped)
        except Exception:
            status = 500
            raise
        finally:
            # the route that matched, not the path: clients do not choose label values
            handler = getattr(scope.get("route"), "path", "none")
            self._metrics.observe(scope["method"], handler, status, time.perf_counter() - start)


def _given_id(scope: Scope) -> str | None:
    """The sender's id of the request, None where there is none; ValueError where it is not fit for one."""
    for name, value in scope["headers"]:
        if name == REQUEST_ID.encode():
            return parse_request_id(value)
    return None
