"""Failures of a service's routes in the one shape of `protocol.errors`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from protocol.error_shapes import error_body
from protocol.errors import (
    INVALID_REQUEST,
    ApiError,
    ErrorResponse,
    from_error_list,
    internal,
    not_found,
    status_on,
)


def error_response(error: ApiError, path: str) -> Response:
    """The HTTP answer of the route `path` for `error`; as every response of starlette an ASGI application."""
    return Response(error_body(path, error), error.status, error.headers, media_type="application/json")


def document_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route that may fail with these statuses."""
    return {status: {"model": ErrorResponse} for status in statuses}


def unexpected(service: str) -> ApiError:
    """500 for an unexpected error; the traceback goes to the log, not to the client."""
    return internal(f"the {service} failed to answer; its log says why")


def install_error_handlers(app: FastAPI, service: str) -> None:
    """Let `app` answer every failure as an `ErrorResponse`.

    Args:
        service: what the app is, for messages: ``gateway`` or ``server``.
    """

    async def failed(request: Request, error: Exception) -> Response:
        return error_response(unexpected(service), request.url.path)

    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, failed)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    error.status = status_on(request.url.path, error.status)
    return error_response(error, request.url.path)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # locations begin with the part of the request, which is the whole one where all of it is wrong
    errors = [{**item, "loc": item["loc"][1:] or item["loc"]} for item in error.errors()]
    return error_response(from_error_list(errors), request.url.path)


async def _http_exception(request: Request, error: Exception) -> Response:
    """What the router itself refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == HTTPStatus.NOT_FOUND:
        return error_response(not_found(f"there is no {path} here"), path)
    message, code = str(error.detail), None
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message, code = f"{path} does not take {request.method}", "method_not_allowed"
    said = ApiError(error.status_code, message, type=INVALID_REQUEST, code=code)
    response = error_response(said, path)
    response.headers.update(error.headers or {})
    if "GET" in (allowed := response.headers.get("allow", "").split(", ")):
        response.headers["allow"] = ", ".join(sorted({*allowed, "HEAD"}))  # see `utils.answers.HeadAsGet`
    return response
