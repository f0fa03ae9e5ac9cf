"""Calls of the OpenAI SDK, and what an endpoint's answers and errors mean. No state."""

from __future__ import annotations

import time
from typing import Any, TypeGuard

import openai
import orjson
from openai import AsyncAPIResponse
from openai._response import AsyncResponseContextManager

from client.config import OpenAIJumperConfig
from client.requests.request import InferenceRequest
from client.upstream.classify import OF_THE_REQUEST, BadAnswer, describe
from client.upstream.parse import count, retry_after
from client.upstream.session import MAX_ANSWER_BYTES
from protocol.errors import INVALID_REQUEST, SERVER_ERROR, ApiError
from protocol.headers import HOPS, RETRY_AFTER, SHOULD_RETRY
from protocol.routes import OPENAI_COMPLETIONS
from utils.addresses import Address

_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached")
"""Codes of a 429 that does not end by waiting a moment."""

Call = AsyncResponseContextManager[AsyncAPIResponse[Any]]


def login(config: OpenAIJumperConfig) -> dict[str, str]:
    """What is sent in place of the key to a URL with a user name."""
    secret = config.base_url.authorization if isinstance(config.base_url, Address) else None
    return {} if secret is None else {"Authorization": secret}


def call(client: openai.AsyncOpenAI, request: InferenceRequest) -> Call:
    """The SDK's call for `request`: the required fields as arguments, all others as they came."""
    fields = dict(request.fields)
    model, headers = fields.pop("model"), {HOPS: str(request.hops + 1)}
    if request.route == OPENAI_COMPLETIONS:
        completions = client.completions.with_streaming_response
        prompt = fields.pop("prompt", None)
        return completions.create(model=model, prompt=prompt, extra_body=fields, extra_headers=headers)
    chats = client.chat.completions.with_streaming_response
    messages = fields.pop("messages", [])
    return chats.create(model=model, messages=messages, extra_body=fields, extra_headers=headers)


def endpoint_error(error: openai.APIStatusError) -> ApiError:
    """The endpoint's error message, if its body follows the protocol; the SDK's own message wraps it."""
    fields = error.body if isinstance(error.body, dict) else {"message": error.body}

    def text(name: str) -> str | None:
        value = fields.get(name)
        return value if isinstance(value, str) and value else None

    status = error.status_code if error.status_code < 600 else 502
    return ApiError(
        status,
        text("message") or text("detail") or error.message,
        type=text("type") or (INVALID_REQUEST if status < 500 else SERVER_ERROR),
        param=text("param"),
        code=error.code,
        final=is_final(error),
    )


def refuses_model(error: Exception) -> TypeGuard[openai.APIStatusError]:
    """Whether the endpoint does not give this account what the request is about: another account may have
    it. 403 is a model that the account may not use, 404 one that the endpoint does not have."""
    return isinstance(error, openai.APIStatusError) and error.status_code in (403, 404)


def blames_key(error: openai.APIStatusError) -> str | None:
    """Why the endpoint takes no request of this account, where it says so."""
    if error.status_code == 401:
        return "its key is not accepted (401)"
    if error.status_code == 402 or (error.status_code == 429 and error.code in _NO_CREDIT):
        return f"its credit is used up ({error.status_code})"
    return None


def blames_request(error: Exception) -> TypeGuard[openai.APIStatusError]:
    """Whether the endpoint says that the request is wrong."""
    if not isinstance(error, openai.APIStatusError):
        return False
    status = error.status_code
    return status in OF_THE_REQUEST or (status < 500 and status not in (401, 402, 403, 404, 429))


def is_final(error: openai.APIStatusError) -> bool:
    """Whether the endpoint says that the same request would fail again."""
    return error.response.headers.get(SHOULD_RETRY) == "false"


def reason(error: Exception) -> str:
    if isinstance(error, openai.APIStatusError):
        return f"answered {error.status_code}"
    return describe(error) if isinstance(error, BadAnswer) else type(error).__name__


async def read_whole(response: AsyncAPIResponse[Any]) -> bytes:
    """The body, as far as an answer may be long."""
    parts: list[bytes] = []
    size = 0
    async for part in response.iter_bytes():
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise BadAnswer(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    return b"".join(parts)


def patience(error: openai.APIStatusError) -> float | None:
    """How long the endpoint wants to be left alone, if it says."""
    return retry_after(error.response.headers.get(RETRY_AFTER), time.time())


def total_tokens(body: bytes, default: int) -> int:
    """`total_tokens` of the usage in `body`, or `default`; raises `BadAnswer` if it is not a JSON object."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadAnswer(f"the answer is not valid JSON: {error}") from None
    if not isinstance(answer, dict):
        raise BadAnswer("the answer is not a completion")
    usage = answer.get("usage")
    found = count(usage.get("total_tokens")) if isinstance(usage, dict) else None
    return default if found is None else found


def usage_tokens(event: bytes, default: int) -> int:
    """The same of an event, which need not be one."""
    try:
        return total_tokens(event, default)
    except BadAnswer:
        return default
