"""The completion routes as FastAPI knows them: for its OpenAPI document, and to refuse other methods.

The requests themselves `asgi.CompletionFront` answers, before FastAPI sees them.
"""

from __future__ import annotations

from typing import NoReturn

from fastapi import APIRouter

from protocol import routes
from protocol.completion import CompletionRequest, CompletionResponse
from protocol.errors import not_found
from protocol.messages import CountTokensRequest, MessageAnswer, MessagesRequest, TokenCount
from protocol.openai import ChatCompletionRequest, OpenAICompletionRequest
from protocol.openai_answers import ChatCompletionResponse, OpenAICompletionResponse
from protocol.responses import ResponsesRequest
from protocol.responses_answers import ResponsesAnswer
from protocol.tokenization import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from utils.http_errors import document_errors


class NamedTokenizeRequest(TokenizeRequest):
    """A gateway finds the server by the name of its model."""

    model: str


class NamedDetokenizeRequest(DetokenizeRequest):
    """A gateway finds the server by the name of its model."""

    model: str


completion_router = APIRouter(
    tags=["completions"],
    responses=document_errors(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504),
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


@completion_router.post(routes.OPENAI_RESPONSES)
async def openai_response(request: ResponsesRequest) -> ResponsesAnswer:
    """OpenAI's responses, by whoever serves the model."""
    _in_front()


@completion_router.post(routes.ANTHROPIC_MESSAGES)
async def anthropic_message(request: MessagesRequest) -> MessageAnswer:
    """Anthropic's messages, by whoever serves the model."""
    _in_front()


@completion_router.post(routes.ANTHROPIC_COUNT_TOKENS)
async def anthropic_count(request: CountTokensRequest) -> TokenCount:
    """How many tokens a conversation has, for the model that it names."""
    _in_front()


@completion_router.post(routes.TOKENIZE)
async def tokenize(request: NamedTokenizeRequest) -> TokenizeResponse:
    """The tokens of a text or a conversation, for the model that it names."""
    _in_front()


@completion_router.post(routes.DETOKENIZE)
async def detokenize(request: NamedDetokenizeRequest) -> DetokenizeResponse:
    """The text of tokens, by the model that it names."""
    _in_front()


@completion_router.post(routes.CHAT_COMPLETION_V1)
async def chat_completion_v1(request: ChatCompletionRequest) -> ChatCompletionResponse:
    """OpenAI's chat completions, by an OpenAI account, which may take more options than these."""
    _in_front()


def _in_front() -> NoReturn:
    # `CompletionFront` takes the very path; the router took another one for it
    raise not_found("there is no such path here")
