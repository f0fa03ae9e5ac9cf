"""The completion routes as FastAPI knows them: for its OpenAPI document, and to refuse other methods.

The requests themselves `asgi.CompletionFront` answers, before FastAPI sees them.
"""

from __future__ import annotations

from typing import NoReturn

from fastapi import APIRouter

from client.routes import errors
from protocol import routes
from protocol.completion import CompletionRequest, CompletionResponse
from protocol.openai import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    OpenAICompletionRequest,
    OpenAICompletionResponse,
)

completion_router = APIRouter(
    tags=["completions"], responses=errors(400, 401, 404, 408, 409, 413, 422, 429, 500, 503, 504)
)


@completion_router.post(routes.COMPLETION_V1)
async def completion_v1(request: CompletionRequest) -> CompletionResponse:
    """Completion by a static-batching server."""
    _in_front()


@completion_router.post(routes.COMPLETION_V2)
async def completion_v2(request: CompletionRequest) -> CompletionResponse:
    """Completion by a continuous-batching server; with `stream` as server-sent events."""
    _in_front()


@completion_router.post(routes.OPENAI_COMPLETIONS)
async def openai_completion(request: OpenAICompletionRequest) -> OpenAICompletionResponse:
    """OpenAI's completions, by whoever serves the model."""
    _in_front()


@completion_router.post(routes.OPENAI_CHAT_COMPLETIONS)
async def openai_chat(request: ChatCompletionRequest) -> ChatCompletionResponse:
    """OpenAI's chat completions, by whoever serves the model."""
    _in_front()


@completion_router.post(routes.CHAT_COMPLETION_V1)
async def chat_completion_v1(request: ChatCompletionRequest) -> ChatCompletionResponse:
    """OpenAI's chat completions, by an OpenAI account, which may take more options than these."""
    _in_front()


def _in_front() -> NoReturn:
    raise RuntimeError("a completion route was reached behind CompletionFront")
