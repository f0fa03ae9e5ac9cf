"""What HTTP asks of every answer, in front of ASGI applications that leave it out."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLOSE = (b"connection", b"close")
"""Header of an answer after which the connection takes no further request."""


class HeadAsGet:
    """Lets `app` answer HEAD wherever it answers GET (RFC 9110, 9.3.2); the HTTP server omits the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


def closing(send: Send) -> Send:
    """`send` for the last answer on its connection."""

    async def last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], CLOSE]}
        await send(message)

    return last
