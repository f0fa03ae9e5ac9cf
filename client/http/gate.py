"""Checks requests before they reach the routes of FastAPI."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from client.gateway import Gateway
from client.http.keys import caller, check_metrics_key
from protocol.errors import ApiError
from utils.body_reader import BodyReader
from utils.http_errors import error_response
from utils.keys import authorization, check_key

MAX_BODY_BYTES = 2**16
"""No route behind FastAPI needs more."""


class Gate:
    """Passes authorized requests on to `app`: every route needs an API key but those listed here.

    Paths are compared as they are: one that `app` takes for another spelling of these needs a key.

    Args:
        unlocked: paths that need no key.
        events: paths for servers, which send the event token where there is one.
        metrics: paths for Prometheus, which may send a token of its own.
    """

    def __init__(
        self,
        gateway: Gateway,
        app: ASGIApp,
        *,
        unlocked: Collection[str],
        events: Collection[str],
        metrics: Collection[str],
    ) -> None:
        self._gateway = gateway
        self._app = BodyReader(app, gateway.bodies, MAX_BODY_BYTES)
        self._unlocked = frozenset(unlocked)
        self._events = frozenset(events)
        self._metrics = frozenset(metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":  # a websocket; there are none
            await send({"type": "websocket.close", "code": 1008})
        else:
            app: ASGIApp = self._app
            try:
                self._check(scope)
            except ApiError as error:
                app = error_response(error, scope["path"])
            await app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        path, config = scope["path"], self._gateway.settings.config
        if path in self._unlocked:
            return
        presented = authorization(scope["headers"])
        if path in self._metrics:
            check_metrics_key(presented, config)
        elif path not in self._events:
            caller(presented, config)
        elif config.event_token is not None:
            check_key(presented, config.event_token)
