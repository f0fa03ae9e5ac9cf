"""The routes that continue texts: native and ``/v1/completions``."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from protocol import routes
from protocol.completion import CompletionRequest, CompletionResponse
from protocol.openai import OpenAICompletionRequest
from protocol.openai_answers import OpenAICompletionResponse
from protocol.status import ServiceKind
from server.api.answer import Context, answer
from server.api.envelope import envelope
from server.api.jobs import Call, completion_call, openai_completion_call, parse, split_prompts
from server.api.logprobs import TextLogprobs
from server.api.openapi import document_body
from server.api.shapes import Echo, NativeShape, PromptTold, TextShape, TokensTold
from server.api.writing import already_sent
from server.text.tokenizer import Tokenizer
from utils.http_errors import document_errors

NATIVE_ROUTES: dict[ServiceKind, str] = {
    "static_batching": routes.COMPLETION_V1,
    "continuous_batching": routes.COMPLETION_V2,
}

_ERRORS = document_errors(400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503)
_NATIVE_ERRORS = _ERRORS | document_errors(422)


def completion_router(context: Context) -> APIRouter:
    """The generating routes of one service."""
    router = APIRouter(tags=["completions"])
    service = context.service

    @router.post(
        NATIVE_ROUTES[service.kind],
        response_model=CompletionResponse,
        responses=_NATIVE_ERRORS,
        openapi_extra=document_body(CompletionRequest),
    )
    async def complete(request: Request) -> Response:
        """Continue a prompt."""
        body = await parse(CompletionRequest, await request.body())
        call = await completion_call(service, body)
        shape = NativeShape(
            token_ids=body.return_token_ids,
            logprobs=_text_logprobs(service.tokenizer, call),
            prompt=PromptTold(service.tokenizer, call.config.prompt_logprobs),
        )
        return await answer(context, request, call, shape)

    @router.post(
        routes.OPENAI_COMPLETIONS,
        response_model=OpenAICompletionResponse,
        responses=_ERRORS,
        openapi_extra=document_body(OpenAICompletionRequest),
    )
    async def openai_complete(request: Request) -> Response:
        """Continue one or several prompts, as OpenAI's completions API does."""
        body = await parse(OpenAICompletionRequest, await request.body())
        call = await openai_completion_call(service, body)
        echo = _echo(service.tokenizer, body, call) if body.echo else None
        shape = TextShape(
            envelope(request, body, call, service.fingerprint),
            echo=echo,
            logprobs=_text_logprobs(service.tokenizer, call, echo),
            top=body.logprobs or 0,
            prompt=PromptTold(service.tokenizer, body.prompt_logprobs),
            tokens=TokensTold(call.prompts, call.config.num_choices, wanted=bool(body.return_token_ids)),
        )
        return await answer(context, request, call, shape)

    return router


def _text_logprobs(
    tokenizer: Tokenizer, call: Call, echo: Sequence[Echo] | None = None
) -> TextLogprobs | None:
    if call.config.logprobs is None:
        return None
    vocabulary = tokenizer.vocabulary.showing(call.shown_markers)
    texts = None if echo is None else [one.text for one in echo]
    return TextLogprobs(tokenizer, vocabulary, already_sent(call), texts)


def _echo(tokenizer: Tokenizer, body: OpenAICompletionRequest, call: Call) -> list[Echo]:
    """The prompt of each answer."""
    prompts = [
        Echo(prompt if isinstance(prompt, str) else tokenizer.decode(prompt), token_ids[0])
        for prompt, token_ids in zip(split_prompts(body.prompt), call.prompts, strict=True)
    ]
    return [prompt for prompt in prompts for _ in range(call.config.num_choices)]
