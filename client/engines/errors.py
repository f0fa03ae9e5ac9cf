"""Errors of engines that are not ours, in the one shape of the stack.

Message and field are the engine's; the type follows from the status, as everywhere, and `code` is the
engine's own word for it.
"""

from __future__ import annotations

from typing import Any

import orjson

from protocol.errors import CANCELLED, INVALID_REQUEST, OVERLOADED, SERVER_ERROR, TIMEOUT, ApiError, internal

MAX_MESSAGE = 2000
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: TIMEOUT,
    409: CANCELLED,
    429: OVERLOADED,
    504: TIMEOUT,
}


def engine_error(status: int, body: bytes) -> ApiError:
    """The error that an engine answered with `status` and `body`."""
    message, word, param = _told(body)
    message = message or f"the server answered {status} without saying why"
    if status == 500:
        return internal(message)
    code = "model_not_found" if status == 404 and param == "model" else word
    kind = _TYPES.get(status, INVALID_REQUEST if status < 500 else SERVER_ERROR)
    return ApiError(status, message, type=kind, code=code, param=param)


def stream_error(data: bytes) -> ApiError:
    """The error with which an engine ended a stream; `data` is that of its last event."""
    try:
        code = orjson.loads(data)["error"]["code"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        code = None
    return engine_error(code if type(code) is int and 400 <= code < 600 else 500, data)


def _told(body: bytes) -> tuple[str, str | None, str | None]:
    """Message, the engine's word for this kind of error, and field."""
    try:
        told: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _line(body.decode(errors="replace")), None, None
    if isinstance(told, dict):  # SGLang's stands at the top
        told = told.get("error") or told.get("detail") or told
    if isinstance(told, list) and told:  # FastAPI's list of what is wrong with a body
        told = told[0]
    if not isinstance(told, dict):
        return (_line(told) if isinstance(told, str) else ""), None, None
    message = told.get("message") or told.get("msg") or ""
    words = (told.get("code"), told.get("type"))  # the code is a status where it is a number
    word = next((word for word in words if isinstance(word, str) and word), None)
    param = told.get("param")
    return _line(str(message)), word, param if isinstance(param, str) else None


def _line(text: str) -> str:
    return " ".join(text.split())[:MAX_MESSAGE]
