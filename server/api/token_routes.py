"""``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from fastapi import APIRouter, Request

from protocol import routes
from protocol.errors import unprocessable
from protocol.openai import SharedRequest
from protocol.tokenization import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from server.api.answer import Context
from server.api.chat.ask import ChatAsk, read_prompt
from server.api.chat.openai import message_of, tool_of
from server.api.chat.thinking import Thinking
from server.api.jobs import check_service, parse, size_of, work
from server.api.openapi import document_body
from server.api.service import Service
from server.text import checks
from server.text.conversation import Conversation
from server.text.formats.chosen import AnswerTools
from utils.http_errors import document_errors

BODIES = (TokenizeRequest, DetokenizeRequest)
"""What the routes take, for the OpenAPI document."""

_ERRORS = document_errors(400, 401, 404, 413, 422, 503)


def token_router(context: Context) -> APIRouter:
    """The routes between text and tokens of one service."""
    router = APIRouter(tags=["tokens"])
    service = context.service

    @router.post(routes.TOKENIZE, responses=_ERRORS, openapi_extra=document_body(TokenizeRequest))
    async def tokenize(request: Request) -> TokenizeResponse:
        """The tokens of a text, or of a conversation as the model sees it."""
        body = await parse(TokenizeRequest, await request.body())
        check_service(service, body.model or service.model_id)
        tokens = await _tokens(service, body)
        strings = service.tokenizer.hf.convert_ids_to_tokens(tokens) if body.return_token_strs else None
        return TokenizeResponse(
            count=len(tokens), max_model_len=service.model_max_length, tokens=tokens, token_strs=strings
        )

    @router.post(routes.DETOKENIZE, responses=_ERRORS, openapi_extra=document_body(DetokenizeRequest))
    async def detokenize(request: Request) -> DetokenizeResponse:
        """The text of tokens."""
        body = await parse(DetokenizeRequest, await request.body())
        check_service(service, body.model or service.model_id)
        tokenizer, tokens = service.tokenizer, body.tokens
        known = len(tokenizer.hf)
        if tokens and max(tokens) >= known:
            message = f"tokens: token id {max(tokens)} is not below the vocabulary size {known}"
            raise unprocessable(message, param="tokens")
        text = await work(len(tokens), lambda: str(tokenizer.hf.decode(tokens)))
        return DetokenizeResponse(prompt=text)

    return router


async def _tokens(service: Service, body: TokenizeRequest) -> list[int]:
    if body.messages is None:
        text = body.prompt or ""
        if not text:
            return []
        checks.check_text(size_of(service), service.tokenizer, text, "prompt")
        special = body.add_special_tokens is not False
        return await work(
            len(text), lambda: checks.encode(service.tokenizer, text, "prompt", special=special)
        )
    tools = [tool_of(tool) for tool in body.tools or ()]
    goes_on = bool(body.continue_final_message)
    conversation = Conversation(
        [message_of(message) for message in body.messages],
        tools,
        add_generation_prompt=body.add_generation_prompt is not False and not goes_on,
        continue_final_message=goes_on,
    )
    ask = ChatAsk(
        conversation,
        SharedRequest.model_construct(model=service.model_id),
        tools=AnswerTools([tool.definition() for tool in tools]),
        thinking=Thinking(variables=body.chat_template_kwargs or {}),
    )
    return (await read_prompt(service, ask)).token_ids
