"""The id of a request: the sender's ``x-request-id``, or a new one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.errors import ApiError, bad_request
from protocol.headers import REQUEST_ID, parse_request_id
from utils.http_errors import error_response

ID_BYTES = 12
_NAME = REQUEST_ID.encode()


def random_ids() -> Iterator[str]:
    """Ids that cannot be guessed; the system is asked for many at a time."""
    while True:
        block = os.urandom(256 * ID_BYTES).hex()
        for begin in range(0, len(block), 2 * ID_BYTES):
            yield block[begin : begin + 2 * ID_BYTES]


def request_id(given: bytes | None, new_ids: Iterator[str]) -> tuple[str, ApiError | None]:
    """The id of a request.

    Args:
        given: its `REQUEST_ID` header.
        new_ids: where a new one comes from.

    Returns:
        The id, and 400 where the header cannot be one: then the id is new.
    """
    if given is None:
        return next(new_ids), None
    try:
        return parse_request_id(given), None
    except ValueError as error:
        return next(new_ids), bad_request(str(error))


class RequestIds:
    """Gives each request its id, and names it in the answer.

    Routes find it in ``scope["state"]["request_id"]``. A request whose header cannot be an id is
    answered with 400.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._new_ids = random_ids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        name, fault = request_id(_header(scope["headers"]), self._new_ids)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = name
            await send(message)

        if fault is not None:
            return await error_response(fault, scope["path"])(scope, receive, named)
        scope.setdefault("state", {})["request_id"] = name
        return await self._app(scope, receive, named)


def _header(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    return next((value for name, value in headers if name == _NAME), None)
