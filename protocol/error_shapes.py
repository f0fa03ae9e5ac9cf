"""How each API writes an error: as OpenAI does everywhere, but as Anthropic does on its own routes."""

from __future__ import annotations

import json

from pydantic import ValidationError

from protocol.errors import ApiError, ErrorBody, ErrorResponse, status_of
from protocol.routes import ANTHROPIC_MESSAGES

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(path: str, error: ApiError) -> bytes:
    """The JSON of `error` in an answer of the route `path`."""
    return _anthropic(error.body, error.status) if path.startswith(ANTHROPIC_MESSAGES) else error.json()


def reshaped(path: str, body: bytes) -> bytes:
    """An error as a server wrote it into a stream for a gateway, in the words of the route `path`."""
    if not path.startswith(ANTHROPIC_MESSAGES):
        return body
    try:
        error = ErrorResponse.model_validate_json(body).error
    except ValidationError:  # not one of this project's servers
        return body
    return _anthropic(error, status_of(error))


def _anthropic(error: ErrorBody, status: int) -> bytes:
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    fields = {**error.model_dump(), "type": kind}
    return json.dumps({"type": "error", "error": fields}, ensure_ascii=False).encode()
