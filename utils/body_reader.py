"""Reads the whole body of a request before the application behind sees it."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.errors import ApiError
from utils.bodies import Bodies, ClientLeft
from utils.http_errors import error_response


class BodyReader:
    """Hands to `app` whole bodies alone, within the limits of `bodies`.

    Args:
        app: an ASGI application.
        bodies: those that the process holds.
        max_bytes: a limit below `BodyLimits.max_body_bytes`, where no route needs as much.
    """

    def __init__(self, app: ASGIApp, bodies: Bodies, max_bytes: int | None = None) -> None:
        self._app = app
        self._bodies = bodies
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            return await self._app(scope, receive, send)
        try:
            with self._bodies.open(scope["headers"], self._max_bytes) as body:
                whole = [await body.read(receive)]

                async def replay() -> Message:
                    if not whole:
                        return await receive()
                    return {"type": "http.request", "body": whole.pop(), "more_body": False}

                _say_that_it_is_json(scope)
                return await self._app(scope, replay, send)
        except ApiError as error:  # what the app raises it answers itself
            return await error_response(error, scope["path"])(scope, receive, send)
        except ClientLeft:
            return None


_JSON = (b"content-type", b"application/json")


def _say_that_it_is_json(scope: Scope) -> None:
    """Give the body its type where its sender says none or a default one of clients: FastAPI parses no other.

    `utils.cross_site` has refused those that say something else. The scope stays the same object, for what
    stands in front looks up which route it took.
    """
    if _JSON not in scope["headers"]:
        scope["headers"] = [*(field for field in scope["headers"] if field[0] != _JSON[0]), _JSON]


def _has_body(scope: Scope) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
