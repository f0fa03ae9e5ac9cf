"""The routes that answer conversations: ``/v1/chat/completions``, ``/v1/responses``, ``/v1/messages``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from protocol import routes
from protocol.messages import CountTokensRequest, MessageAnswer, MessagesRequest, TokenCount
from protocol.openai import ChatCompletionRequest
from protocol.openai_answers import ChatCompletionResponse
from protocol.responses import ResponsesRequest
from protocol.responses_answers import ResponsesAnswer
from server.api.answer import Context, answer
from server.api.chat.ask import chat_call, read_prompt
from server.api.chat.calls import CallIds
from server.api.chat.openai import chat_ask
from server.api.chat.shape import ChatShape
from server.api.envelope import envelope
from server.api.jobs import check_service, parse, work
from server.api.messages.ask import messages_ask
from server.api.messages.shape import MessagesShape
from server.api.openapi import document_body
from server.api.responses.ask import responses_ask
from server.api.responses.shape import ResponsesShape
from server.api.service import Service
from server.api.shapes import PromptTold, TokensTold
from server.text.detokenizer import Detokenizer
from utils.http_errors import document_errors

BODIES = (ChatCompletionRequest, ResponsesRequest, MessagesRequest, CountTokensRequest)
"""What the routes take, for the OpenAPI document."""

_ERRORS = document_errors(400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503)


def chat_router(context: Context) -> APIRouter:
    """The conversing routes of one service."""
    router = APIRouter(tags=["conversations"])
    _add_openai(router, context)
    _add_anthropic(router, context)
    return router


def _call_ids(service: Service, request: Request, prefix: str) -> CallIds:
    short = service.tokenizer.answer_format.format.short_ids
    return CallIds(request.state.request_id, prefix, short=short)


def _add_openai(router: APIRouter, context: Context) -> None:
    service = context.service

    @router.post(
        routes.OPENAI_CHAT_COMPLETIONS,
        response_model=ChatCompletionResponse,
        responses=_ERRORS,
        openapi_extra=document_body(ChatCompletionRequest),
    )
    async def chat(request: Request) -> Response:
        """Answer a conversation, as OpenAI's chat API does."""
        body = await parse(ChatCompletionRequest, data := await request.body())
        call = await chat_call(service, await work(len(data), lambda: chat_ask(body)))
        shape = ChatShape(
            envelope(request, body, call, service.fingerprint),
            stream=call.stream,
            tokenizer=None if call.config.logprobs is None else service.tokenizer,
            reader=call.reader,
            ids=_call_ids(service, request, "call_"),
            prompt=PromptTold(service.tokenizer, body.prompt_logprobs),
            tokens=TokensTold(call.prompts, call.config.num_choices, wanted=bool(body.return_token_ids)),
        )
        return await answer(context, request, call, shape)

    @router.post(
        routes.OPENAI_RESPONSES,
        response_model=ResponsesAnswer,
        responses=_ERRORS,
        openapi_extra=document_body(ResponsesRequest),
    )
    async def respond(request: Request) -> Response:
        """Answer a conversation, as OpenAI's responses API does; nothing is kept of it."""
        body = await parse(ResponsesRequest, data := await request.body())
        ask = await work(len(data), lambda: responses_ask(body))
        call = await chat_call(service, ask)
        around = envelope(request, ask.sampling, call, service.fingerprint)
        shape = ResponsesShape(around, body, service.tokenizer, _call_ids(service, request, "call_"))
        return await answer(context, request, call, shape)


def _add_anthropic(router: APIRouter, context: Context) -> None:
    service = context.service

    @router.post(
        routes.ANTHROPIC_MESSAGES,
        response_model=MessageAnswer,
        responses=_ERRORS,
        openapi_extra=document_body(MessagesRequest),
    )
    async def message(request: Request) -> Response:
        """Answer a conversation, as Anthropic's messages API does."""
        body = await parse(MessagesRequest, data := await request.body())
        ask = await work(len(data), lambda: messages_ask(body))
        call = await chat_call(service, ask)
        stops = Detokenizer(service.tokenizer.vocabulary, call.config.stop) if call.config.stop else None
        shape = MessagesShape(
            envelope(request, ask.sampling, call, service.fingerprint),
            _call_ids(service, request, "toolu_"),
            stops,
        )
        return await answer(context, request, call, shape)

    @router.post(
        routes.ANTHROPIC_COUNT_TOKENS,
        responses=_ERRORS,
        openapi_extra=document_body(CountTokensRequest),
    )
    async def count_tokens(request: Request) -> TokenCount:
        """How many tokens a conversation has for this model, its template's own included."""
        body = await parse(CountTokensRequest, data := await request.body())
        ask = await work(len(data), lambda: messages_ask(body))
        check_service(service, ask.sampling.model)
        return TokenCount(input_tokens=len((await read_prompt(service, ask)).token_ids))
