"""Lets only those call a server who hold its key, where there is one."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from protocol import routes
from protocol.errors import ApiError
from utils.config import Secret
from utils.http_errors import error_response
from utils.keys import authorization, check_key

OPEN = (routes.HEALTH, routes.READY)
"""What a load balancer or an orchestrator asks without a key."""
REFUSAL = "this server takes requests with its 'server_key' only, as its gateway sends it"


class KeyGuard:
    """Answers 401 to requests without `key`.

    A server does what its gateway says: it resumes streams at the tokens that a request names, takes
    any priority, and cancels whatever is asked. With a key this is true of its gateway alone.
    """

    def __init__(self, app: ASGIApp, key: Secret) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["path"] not in OPEN:
            try:
                check_key(authorization(scope["headers"]), self._key, REFUSAL)
            except ApiError as error:
                app = error_response(error, scope["path"])
        await app(scope, receive, send)
