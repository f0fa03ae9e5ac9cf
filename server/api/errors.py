"""Every failure in the one shape of `protocol.errors`."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from protocol.errors import INVALID_REQUEST, ApiError, from_error_list, internal, not_found


def error_response(error: ApiError) -> Response:
    """The HTTP answer for `error`."""
    return Response(error.json(), error.status, error.headers, media_type="application/json")


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(from_error_list(error.errors()))


async def _http_exception(request: Request, error: Exception) -> Response:
    """What the router itself refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == HTTPStatus.NOT_FOUND:
        return error_response(not_found(f"there is no {path} here"))
    message, code = str(error.detail), None
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message, code = f"{path} does not take {request.method}", "method_not_allowed"
    response = error_response(ApiError(error.status_code, message, type=INVALID_REQUEST, code=code))
    response.headers.update(error.headers or {})
    return response


async def _unexpected(_: Request, __: Exception) -> Response:
    # the traceback goes to the log, not to the client
    return error_response(internal("the server failed to answer; its log says why"))


def install_error_handlers(app: FastAPI) -> None:
    """Let `app` answer every failure as an `ErrorResponse`."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _unexpected)
