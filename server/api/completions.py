"""The routes that generate: native, ``/v1/completions`` and ``/v1/chat/completions``."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from protocol import routes
from protocol.completion import CompletionRequest, CompletionResponse
from protocol.openai import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    OpenAICompletionRequest,
    OpenAICompletionResponse,
    SharedRequest,
)
from protocol.status import ServiceKind
from server.api.answer import Context, already_sent, answer
from server.api.jobs import Call, chat_call, completion_call, openai_completion_call, parse, split_prompts
from server.api.logprobs import TextLogprobs
from server.api.openapi import document_body, document_errors
from server.api.shapes import ChatShape, Envelope, NativeShape, TextShape
from server.text.tokenizer import Tokenizer

NATIVE_ROUTES: dict[ServiceKind, str] = {
    "static_batching": routes.COMPLETION_V1,
    "continuous_batching": routes.COMPLETION_V2,
}

_ERRORS = document_errors(400, 404, 408, 409, 413, 422, 429, 500, 503)


def completion_router(context: Context) -> APIRouter:
    """The generating routes of one service."""
    router = APIRouter(tags=["completions"])
    service = context.service

    @router.post(
        NATIVE_ROUTES[service.kind],
        response_model=CompletionResponse,
        responses=_ERRORS,
        openapi_extra=document_body(CompletionRequest),
    )
    async def complete(request: Request) -> Response:
        """Continue a prompt."""
        body = parse(CompletionRequest, await request.body())
        call = await completion_call(service, body)
        shape = NativeShape(token_ids=body.return_token_ids, logprobs=_text_logprobs(service.tokenizer, call))
        return await answer(context, request, call, shape)

    @router.post(
        routes.OPENAI_COMPLETIONS,
        response_model=OpenAICompletionResponse,
        responses=_ERRORS,
        openapi_extra=document_body(OpenAICompletionRequest),
    )
    async def openai_complete(request: Request) -> Response:
        """Continue one or several prompts, as OpenAI's completions API does."""
        body = parse(OpenAICompletionRequest, await request.body())
        call = await openai_completion_call(service, body)
        shape = TextShape(
            _envelope(request, body, call),
            echo=_echo(service.tokenizer, body, call) if body.echo else None,
            logprobs=_text_logprobs(service.tokenizer, call),
        )
        return await answer(context, request, call, shape)

    @router.post(
        routes.OPENAI_CHAT_COMPLETIONS,
        response_model=ChatCompletionResponse,
        responses=_ERRORS,
        openapi_extra=document_body(ChatCompletionRequest),
    )
    async def chat(request: Request) -> Response:
        """Answer a conversation, as OpenAI's chat API does."""
        body = parse(ChatCompletionRequest, await request.body())
        call = await chat_call(service, body)
        shape = ChatShape(
            _envelope(request, body, call),
            stream=call.stream,
            tokenizer=None if call.config.logprobs is None else service.tokenizer,
        )
        return await answer(context, request, call, shape)

    return router


def _envelope(request: Request, body: SharedRequest, call: Call) -> Envelope:
    return Envelope(
        request_id=request.state.request_id,
        created=int(time.time()) if call.resume is None else call.resume.created,
        model=body.model,
        prompt_tokens=call.prompt_tokens,
        stream_options=body.stream_options,
    )


def _text_logprobs(tokenizer: Tokenizer, call: Call) -> TextLogprobs | None:
    return None if call.config.logprobs is None else TextLogprobs(tokenizer, already_sent(call))


def _echo(tokenizer: Tokenizer, body: OpenAICompletionRequest, call: Call) -> list[str]:
    """The text of each answer's prompt."""
    prompts = [
        prompt if isinstance(prompt, str) else str(tokenizer.hf.decode(prompt, skip_special_tokens=True))
        for prompt in split_prompts(body.prompt)
    ]
    return [prompt for prompt in prompts for _ in range(call.config.num_choices)]
