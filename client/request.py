"""What the gateway reads from a request body; all the rest is for the server to judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from client.affinity import prefix_keys
from protocol.errors import bad_request, unprocessable
from protocol.routes import (
    CHAT_COMPLETION_V1,
    COMPLETION_V1,
    COMPLETION_V2,
    OPENAI_CHAT_COMPLETIONS,
    OPENAI_COMPLETIONS,
)
from protocol.status import ServiceKind
from protocol.work import expected_tokens

KINDS: dict[str, tuple[ServiceKind, ...]] = {
    COMPLETION_V1: ("static_batching",),
    COMPLETION_V2: ("continuous_batching",),
    OPENAI_COMPLETIONS: ("continuous_batching", "static_batching"),
    OPENAI_CHAT_COMPLETIONS: ("continuous_batching", "static_batching"),
    CHAT_COMPLETION_V1: (),
}
"""Which servers answer a route, the preferred kind first; the last is for OpenAI accounts alone."""

CONTINUOUS: tuple[ServiceKind, ...] = ("continuous_batching",)

NATIVE_NEW_TOKENS = 32
"""`max_new_tokens` where a native request sets none."""
TEXT_NEW_TOKENS = 16
"""`max_tokens` of ``/v1/completions`` where none is set."""
CHAT_NEW_TOKENS = 256
"""A guess for ``/v1/chat/completions`` without a limit, which may run to the model's length."""
CHARS_PER_TOKEN = 4


@dataclass(slots=True, eq=False)
class InferenceRequest:
    """A request to be routed."""

    id: str
    route: str
    kinds: tuple[ServiceKind, ...]
    """Which servers can answer it, the preferred kind first."""
    body: bytes
    """As the client sent it."""
    fields: dict[str, Any]
    """`body`, parsed."""
    model: str
    stream: bool
    choices: int
    """Answers that the response will hold."""
    rows: int
    """Sequences decoded side by side for them."""
    work: int
    """Expected work in tokens."""
    prefix: list[int]
    """Keys of the prompt's beginning, see `affinity`."""
    checkpoints: bool = False
    """The client is a gateway itself and wants the checkpoints of the stream."""
    hops: int = 0
    """Gateways that it has come through."""


def read_request(
    id: str, route: str, body: bytes, *, checkpoints: bool = False, hops: int = 0
) -> InferenceRequest:
    """Parse `body` just as far as routing needs.

    Raises:
        ApiError: 400 if it is no JSON object, 422 if the model is not named.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise bad_request("the body must be a JSON object", code="invalid_json")
    model = fields.get("model")
    if not isinstance(model, str):
        if model is None:
            raise unprocessable("'model' is required", param="model", code="missing_field")
        raise unprocessable("model: Input should be a valid string", param="model", code="invalid_value")
    read = _native if route in (COMPLETION_V1, COMPLETION_V2) else _openai
    prompt, choices, rows, new_tokens = read(fields)
    kinds = KINDS[route]
    if len(kinds) > 1 and beyond_static(fields) is not None:
        kinds = CONTINUOUS
    length = len(prompt) // CHARS_PER_TOKEN if isinstance(prompt, str) else len(prompt)
    return InferenceRequest(
        id=id,
        route=route,
        kinds=kinds,
        body=body,
        fields=fields,
        model=model,
        stream=fields.get("stream") is True,
        choices=choices,
        rows=rows,
        work=max(1, expected_tokens(length, rows, new_tokens)),
        prefix=prefix_keys(prompt),
        checkpoints=checkpoints,
        hops=hops,
    )


def beyond_static(fields: dict[str, Any]) -> str | None:
    """The option of a request on ``/v1/*`` that static-batching servers are known not to honour, if any.

    They have no streams, no log probabilities of beams, and drafts for greedy answers without any
    alone (`server.static_batching.options`).
    """
    if fields.get("stream") is True:
        return "stream"
    logprobs = fields.get("logprobs")
    reports = type(logprobs) is int or logprobs is True
    if reports and _count(fields, "num_beams") > 1:
        return "logprobs"
    if _count(fields, "prompt_lookup_num_tokens", 0) and (reports or fields.get("temperature") != 0):
        return "prompt_lookup_num_tokens"
    return None


Shape = tuple[str | Sequence[int], int, int, int]
"""Prompt, answers, rows decoded side by side, new tokens of each."""


def _native(fields: dict[str, Any]) -> Shape:
    prompt = _prompt(fields.get("prompt"))
    config = fields.get("generation_config")
    if not isinstance(config, dict):
        return prompt, 1, 1, NATIVE_NEW_TOKENS
    choices = max(_count(config, "n"), _count(config, "num_return_sequences"))
    rows = max(choices, _count(config, "num_beams"))
    return prompt, choices, rows, _count(config, "max_new_tokens", NATIVE_NEW_TOKENS)


def _openai(fields: dict[str, Any]) -> Shape:
    choices = _count(fields, "n")
    rows = max(choices, _count(fields, "num_beams"))
    messages = fields.get("messages")
    if isinstance(messages, list):
        limit = _count(fields, "max_completion_tokens", 0) or _count(fields, "max_tokens", CHAT_NEW_TOKENS)
        return "\n".join([_message_text(message) for message in messages]), choices, rows, limit
    limit = _count(fields, "max_tokens", TEXT_NEW_TOKENS)
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return _prompt(prompt[0]), choices * len(prompt), rows * len(prompt), limit
    return _prompt(prompt), choices, rows, limit


def _message_text(message: Any) -> str:
    if not isinstance(message, dict):
        return ""
    content = message.get("content")
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return "".join([text for text in texts if isinstance(text, str)])


def _prompt(value: Any) -> str | Sequence[int]:
    return value if isinstance(value, str | list) else ""


def _count(fields: dict[str, Any], name: str, default: int = 1) -> int:
    """A positive whole number, or `default` for whatever else stands there."""
    value = fields.get(name)
    return value if type(value) is int and value > 0 else default
