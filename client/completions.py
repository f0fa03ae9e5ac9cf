"""The completion routes as the OpenAPI document shows them.

They are declared for the document alone: `asgi.CompletionFront` answers them before FastAPI sees
the request.
"""

from __future__ import annotations

from typing import Any, NoReturn

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi

from client.routes import errors
from protocol import routes
from protocol.completion import CompletionRequest, CompletionResponse
from protocol.openai import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    OpenAICompletionRequest,
    OpenAICompletionResponse,
)

declared = APIRouter(
    tags=["completions"], responses=errors(400, 401, 404, 408, 409, 413, 422, 429, 500, 503, 504)
)


@declared.post(routes.COMPLETION_V1)
async def completion_v1(request: CompletionRequest) -> CompletionResponse:
    """Completion by a static-batching server."""
    _in_front()


@declared.post(routes.COMPLETION_V2)
async def completion_v2(request: CompletionRequest) -> CompletionResponse:
    """Completion by a continuous-batching server; with `stream` as server-sent events."""
    _in_front()


@declared.post(routes.OPENAI_COMPLETIONS)
async def openai_completion(request: OpenAICompletionRequest) -> OpenAICompletionResponse:
    """OpenAI's completions, by whoever serves the model."""
    _in_front()


@declared.post(routes.OPENAI_CHAT_COMPLETIONS)
async def openai_chat(request: ChatCompletionRequest) -> ChatCompletionResponse:
    """OpenAI's chat completions, by whoever serves the model."""
    _in_front()


@declared.post(routes.CHAT_COMPLETION_V1)
async def chat_completion_v1(request: ChatCompletionRequest) -> ChatCompletionResponse:
    """OpenAI's chat completions, by an OpenAI account, which may take more options than these."""
    _in_front()


def _in_front() -> NoReturn:
    raise RuntimeError("a completion route was reached behind CompletionFront")


def document_completions(app: FastAPI) -> None:
    """Show the completion routes in the OpenAPI document of `app`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(
                title=app.title, version=app.version, routes=[*declared.routes, *app.routes]
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way
