"""Pure ASGI middleware: a count and a duration for each request, and load and weights on each answer."""

from __future__ import annotations

import json
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.errors import CLIENT_CLOSED_REQUEST
from protocol.headers import SERVER_LOAD, SERVER_SAMPLING, SERVER_WEIGHTS
from protocol.status import ServerState
from server.api.metrics import HttpMetrics
from server.api.service import Service
from utils.answers import CLOSE


class Envelope:
    """Measures each request, and tells with each answer to a POST how much work the service has, and by
    which weights it answers."""

    def __init__(self, app: ASGIApp, service: Service, metrics: HttpMetrics) -> None:
        self._app = app
        self._service = service
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start = time.perf_counter()
        status = CLIENT_CLOSED_REQUEST  # nothing sent: the client had gone

        async def wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._service.state is ServerState.DRAINING:
                    message["headers"] = [*message["headers"], CLOSE]
                if scope["method"] == "POST":
                    headers = MutableHeaders(scope=message)
                    headers[SERVER_LOAD] = str(self._service.pending_tokens)
                    if self._service.fingerprint is not None:
                        headers[SERVER_WEIGHTS] = self._service.fingerprint
                        headers[SERVER_SAMPLING] = json.dumps(dict(self._service.sampling_defaults))
            await send(message)

        try:
            return await self._app(scope, receive, wrapped)
        except Exception:
            status = 500
            raise
        finally:
            # the route that matched, not the path: clients do not choose label values
            handler = getattr(scope.get("route"), "path", "none")
            self._metrics.observe(scope["method"], handler, status, time.perf_counter() - start)
