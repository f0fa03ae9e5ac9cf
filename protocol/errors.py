"""The one error shape of the stack and the exception that carries it.

Every service answers a failed request with ``{"error": {"message", "type", "param", "code"}}``,
which is what the OpenAI SDKs parse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from protocol.headers import RETRY_AFTER, SHOULD_RETRY

CLIENT_CLOSED_REQUEST = 499
"""Status under which a request is counted whose client went away, as nginx does; never sent."""


class ErrorBody(BaseModel):
    """What went wrong, for a person (`message`) and for a program (`type`, `param`, `code`)."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorBody


class ApiError(Exception):
    """A failure with the HTTP status and body that the caller shall see.

    Args:
        status: HTTP status code.
        message: one line for the person who sent the request.
        type: class of the error, e.g. ``invalid_request_error``.
        code: stable name of this very error, e.g. ``model_not_found``.
        param: the request field at fault.
        retry_after: whole seconds after which a retry makes sense; sent as ``Retry-After``.
        final: a retry is not wanted, though clients retry such a status; sent as ``x-should-retry``.
        fields: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        final: bool = False,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self._fields = fields or {}
        self.status = status
        self.body = ErrorBody(message=message, type=type, param=param, code=code)
        self.retry_after = retry_after
        self.final = final

    @property
    def headers(self) -> dict[str, str]:
        """Those of the answer, beside those that every answer has."""
        headers = {**self._fields, **({SHOULD_RETRY: "false"} if self.final else {})}
        return headers if self.retry_after is None else headers | {RETRY_AFTER: str(self.retry_after)}

    def response(self) -> ErrorResponse:
        return ErrorResponse(error=self.body)

    def json(self) -> bytes:
        """The response body, UTF-8 encoded JSON."""
        return self.response().model_dump_json().encode()


class FieldError(ValueError):
    """What is wrong with `field` in view of others; for validators of whole models, which pydantic
    does not let say where in the request the fault is."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


INVALID_REQUEST = "invalid_request_error"
TIMEOUT = "timeout_error"
CANCELLED = "cancelled"
OVERLOADED = "overloaded_error"
SERVER_ERROR = "server_error"
_INTERNAL = "internal_error"


_OPENAI_ROUTES = "/v1/"


def status_on(path: str, status: int) -> int:
    """The status under which `path` answers an error: OpenAI's routes have 400 for whatever is wrong with
    a request, where native ones tell what cannot be read (400) from what cannot be done (422)."""
    return 400 if status == 422 and path.startswith(_OPENAI_ROUTES) else status


def status_of(error: ErrorBody) -> int:
    """The status that a whole answer with this error has, for one that ended a stream without it."""
    if error.type == SERVER_ERROR:
        return 500 if error.code == _INTERNAL else 503
    return {INVALID_REQUEST: 422, TIMEOUT: 408, CANCELLED: 409, OVERLOADED: 429}.get(error.type, 500)


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request cannot be read at all (malformed JSON, wrong content type)."""
    return ApiError(400, message, type=INVALID_REQUEST, param=param, code=code)


def unprocessable(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """422, on OpenAI's routes 400: the request was read and asks for something that cannot be done."""
    if code is None and param is not None:
        code = "invalid_value"
    return ApiError(422, message, type=INVALID_REQUEST, param=param, code=code)


def unauthorized(message: str) -> ApiError:
    """401: no key, or one that is not known."""
    challenge = {"www-authenticate": "Bearer"}  # RFC 9110, 11.6.1
    return ApiError(401, message, type="authentication_error", code="invalid_api_key", fields=challenge)


def forbidden(message: str, *, param: str | None = None, code: str = "forbidden") -> ApiError:
    """403: this client may not do this."""
    return ApiError(403, message, type="permission_error", param=param, code=code)


def not_found(message: str) -> ApiError:
    """404: no such route or object."""
    return ApiError(404, message, type=INVALID_REQUEST, code="not_found")


def model_not_found(model: str, known: Sequence[str]) -> ApiError:
    """404: `model` is not served; `known` are the model ids that are."""
    served = ", ".join(sorted(set(known))) or "none at the moment"
    message = f"model {model!r} is not served here (served: {served})"
    return ApiError(404, message, type=INVALID_REQUEST, code="model_not_found", param="model")


def model_elsewhere(model: str, by: str) -> ApiError:
    """404: `model` is served, not on this route; `by` says by whom, and on which."""
    message = f"model {model!r} is served by {by}"
    return ApiError(404, message, type=INVALID_REQUEST, code="model_not_found", param="model")


def queue_timeout(message: str) -> ApiError:
    """408: the request waited longer than the queue timeout."""
    return ApiError(408, message, type=TIMEOUT, code="queue_timeout", retry_after=1)


def cancelled() -> ApiError:
    """409: the request was cancelled by its id."""
    return ApiError(409, "the request was cancelled", type=CANCELLED, code="cancelled", final=True)


def body_too_large(limit: int) -> ApiError:
    """413: the body has more than `limit` bytes."""
    message = f"the request body is larger than the limit of {limit} bytes"
    return ApiError(413, message, type=INVALID_REQUEST, code="body_too_large")


def too_many_values_in_body(limit: int) -> ApiError:
    """413: the JSON of the body has more than `limit` values."""
    message = f"the request body has more JSON values than max_body_values allows ({limit})"
    return ApiError(413, message, type=INVALID_REQUEST, code="too_many_values")


def target_too_long(limit: int) -> ApiError:
    """414: path and query have more than `limit` bytes."""
    message = f"the request target is longer than the limit of {limit} bytes"
    return ApiError(414, message, type=INVALID_REQUEST, code="target_too_long")


def unsupported_media_type(message: str) -> ApiError:
    """415: the body is not of a type that is read."""
    return ApiError(415, message, type=INVALID_REQUEST, code="unsupported_media_type")


def unsupported_coding(coding: str) -> ApiError:
    """415: the body is compressed; RFC 9110, 15.5.16."""
    message = f"bodies are read as they are, not in the content coding {coding!r}"
    taken = {"accept-encoding": "identity"}
    return ApiError(415, message, type=INVALID_REQUEST, code="unsupported_content_coding", fields=taken)


def head_too_large(found: str) -> ApiError:
    """431: too many header fields, or too long ones; `found` says what is above its limit."""
    return ApiError(431, f"the request has {found}", type=INVALID_REQUEST, code="head_too_large")


def not_implemented(message: str) -> ApiError:
    """501: a part of HTTP that is not supported."""
    return ApiError(501, message, type=INVALID_REQUEST, code="not_implemented")


def queue_full(message: str, *, retry_after: int = 1) -> ApiError:
    """429: the queue is full; come back."""
    return ApiError(429, message, type=OVERLOADED, code="queue_full", retry_after=retry_after)


def internal(message: str) -> ApiError:
    """500: a fault of the service; never on purpose."""
    return ApiError(500, message, type=SERVER_ERROR, code=_INTERNAL)


def unavailable(message: str, *, code: str = "unavailable", retry_after: int = 1) -> ApiError:
    """503: no server can take the request now (no replica, loading, draining, a lost engine)."""
    return ApiError(503, message, type=SERVER_ERROR, code=code, retry_after=retry_after)


LOOP_DETECTED = 508


def loop_detected(message: str) -> ApiError:
    """508: gateways hand the request to each other."""
    return ApiError(LOOP_DETECTED, message, type=SERVER_ERROR, code="gateway_loop", final=True)


def from_validation(error: ValidationError) -> ApiError:
    """400 for a body that is not JSON, otherwise a 422 that names the first offending field."""
    return from_error_list([dict(item) for item in error.errors(include_url=False)])


def from_error_list(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Like `from_validation`, from pydantic's list of error dictionaries."""
    first = _clearest(errors)
    if first["type"] in ("json_invalid", "json_type"):
        return bad_request(f"the body is not valid JSON: {first['msg']}", code="invalid_json")
    if first["type"] == "extra_forbidden":
        *parents, name = first["loc"]
        option = ".".join([*map(str, filter(_in_request, parents)), str(name)])
        return unprocessable(f"unknown option {option!r}", param=option, code="unknown_option")
    cause = first.get("ctx", {}).get("error")
    place = [*first["loc"], cause.field] if isinstance(cause, FieldError) else first["loc"]
    field = ".".join(map(str, filter(_in_request, place))) or None
    if first["type"] == "missing":
        return unprocessable(f"{field!r} is required", param=field, code="missing_field")
    reason = str(first["msg"]).removeprefix("Value error, ")
    message = f"{field}: {reason}" if field else reason
    if first["type"] != "value_error":
        message += f" (got {_short(first.get('input'))})"
    return unprocessable(message, param=field, code="invalid_value")


def _clearest(errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of the first field's errors the one that got furthest: a union fails once per member."""

    def reached(error: Mapping[str, Any]) -> tuple[int, list[int], bool]:
        indices = [part for part in error["loc"] if isinstance(part, int)]
        return len(error["loc"]), indices, not error["type"].endswith("_type")

    return max((error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]), key=reached)


def _in_request(part: str | int) -> bool:
    """Whether part of an error's location is a key or index, not the name of a union member (types
    and models, which begin with a capital; no field does)."""
    if isinstance(part, int):
        return True
    return part.isidentifier() and not part[0].isupper() and part not in ("str", "int", "float", "bool")


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
