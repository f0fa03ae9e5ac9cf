"""The checks of `utils.cross_site` in front of an ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.errors import ApiError
from protocol.headers import REQUEST_ID, RETRY_AFTER, SHOULD_RETRY
from utils.cross_site import (
    LOOKED_AT,
    SiteConfig,
    browser_headers,
    check_content_type,
    check_host,
    check_origin,
)
from utils.http_errors import error_response

MOST_PASSED = 1024
"""Of how many kinds of requests it is known that they pass."""


class SiteGuard:
    """Hands to `app` what the checks let pass; answers the rest with 400, 403 or 415.

    Args:
        app: the ASGI application that is guarded.
        config: gives the configuration in use.
        host: the name or address that the service was set to listen on.
    """

    def __init__(self, app: ASGIApp, config: Callable[[], SiteConfig], host: str = "") -> None:
        self._app = app
        self._config = config
        self._host = host
        self._names: tuple[Sequence[str], ...] = ()
        self._passed: set[tuple[object, ...]] = set()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        app = self._guarded(scope) if scope["type"] == "http" else self._app
        return app(scope, receive, send)

    def passes(self, scope: Scope) -> bool:
        """Whether the request goes to the guarded application, and the answer to the client, as they are."""
        return self._guarded(scope) is self._app

    def _guarded(self, scope: Scope) -> ASGIApp:
        """What answers the request; requests of one client are nearly always alike, and checked once."""
        config = self._config()
        names = config.allowed_hosts, config.allowed_origins
        if names != self._names:
            self._names, self._passed = names, set()
        kind = _kind(scope)
        if kind in self._passed:
            return self._app
        app = self._admit(scope)
        if kind is not None and app is self._app and len(self._passed) < MOST_PASSED:
            self._passed.add(kind)
        return app

    def _admit(self, scope: Scope) -> ASGIApp:
        """What answers the request."""
        config = self._config()
        try:
            headers = browser_headers(scope)
            check_host(scope, headers, config.allowed_hosts, self._host)
            check_origin(scope["method"], headers, config.allowed_origins)
        except ApiError as error:
            return error_response(error, scope["path"])
        app = self._app
        try:
            check_content_type(headers)
        except ApiError as error:
            app = error_response(error, scope["path"])
        if b"origin" in headers and config.allowed_origins:
            return _readable(app, config.allowed_origins)
        return app


def _kind(scope: Scope) -> tuple[object, ...] | None:
    """All that the checks look at, where no browser sent the request; None: one may have."""
    host = content = length = None
    for name, value in scope["headers"]:
        if name == b"host" and host is None:
            host = value
        elif name == b"content-type" and content is None:
            content = value
        elif name == b"content-length" and length is None:
            length = value
        elif name in LOOKED_AT:
            return None
    server = scope.get("server")
    return server and tuple(server), host, content, length is None or length == b"0"


def _readable(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """`app` with answers that tell the browser which pages may read them."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=(REQUEST_ID, RETRY_AFTER, SHOULD_RETRY),
    )
