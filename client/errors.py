"""Failures of the FastAPI routes in the one shape of `protocol.errors`."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from protocol.errors import INVALID_REQUEST, ApiError, from_error_list, internal, not_found


def _response(error: ApiError) -> Response:
    return Response(error.json(), error.status, error.headers, media_type="application/json")


def install_error_handlers(app: FastAPI) -> None:
    """Let every failure of `app` be an `ErrorResponse`."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return _response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # locations begin with the part of the request, which is the whole one where all of it is wrong
        errors = [{**item, "loc": item["loc"][1:] or item["loc"]} for item in error.errors()]
        return _response(from_error_list(errors))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == 404:
            return _response(not_found(f"there is no {path} here"))
        said = ApiError(error.status_code, f"{path} does not take {request.method}", type=INVALID_REQUEST)
        response = _response(said)
        response.headers.update(error.headers or {})  # Allow
        return response

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return _response(internal("the gateway failed; its log says why"))
