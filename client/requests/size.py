"""The size of a request, estimated from its body without a tokenizer: prompt, rows and new tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from client.requests.options import NATIVE
from protocol.body import as_whole
from protocol.messages import BILLING
from protocol.routes import OPENAI_RESPONSES

NATIVE_NEW_TOKENS = 32
"""`max_new_tokens` where a native request sets none."""
TEXT_NEW_TOKENS = 16
"""`max_tokens` of ``/v1/completions`` where none is set."""
CHAT_NEW_TOKENS = 256
"""A guess for chats without a limit, which may run to the model's length."""


CHARS_PER_TOKEN = 4


class Size(NamedTuple):
    """How large a request is."""

    prompt: str | Sequence[int]
    """The first one where there are several."""
    prompt_tokens: int
    """Expected, of all prompts."""
    choices: int
    """Answers."""
    rows: int
    """Sequences decoded side by side for them."""
    new_tokens: int
    """At most, of each row."""


def read_size(route: str, fields: dict[str, Any]) -> Size:
    """What the body of a request on `route` says; what makes no sense is for the server to refuse."""
    if route in NATIVE:
        return _native(fields)
    return _response(fields) if route == OPENAI_RESPONSES else _openai(fields)


def _native(fields: dict[str, Any]) -> Size:
    prompt = _prompt(fields.get("prompt"))
    config = fields.get("generation_config")
    if not isinstance(config, dict):
        return Size(prompt, _tokens(prompt), 1, 1, NATIVE_NEW_TOKENS)
    choices = max(_count(config, "n"), _count(config, "num_return_sequences"))
    rows = max(choices, _count(config, "num_beams"))
    new_tokens = _count(config, "max_new_tokens", NATIVE_NEW_TOKENS)
    return Size(prompt, _tokens(prompt), choices, rows, new_tokens)


def _openai(fields: dict[str, Any]) -> Size:
    choices = _count(fields, "n")
    rows = max(choices, _count(fields, "num_beams"))
    messages = fields.get("messages")
    if isinstance(messages, list):
        limit = _count(fields, "max_completion_tokens", 0) or _count(fields, "max_tokens", CHAT_NEW_TOKENS)
        text = _conversation([fields.get("system"), *messages])
        return Size(text, _tokens(text), choices, rows, limit)
    limit = _count(fields, "max_tokens", TEXT_NEW_TOKENS)
    prompt = fields.get("prompt")
    prompts = [_prompt(prompt)]
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompts = [_prompt(one) for one in prompt]
    count = len(prompts)
    return Size(prompts[0], sum(map(_tokens, prompts)), choices * count, rows * count, limit)


def _response(fields: dict[str, Any]) -> Size:
    items = fields.get("input")
    messages = items if isinstance(items, list) else [items]
    limit = _count(fields, "max_output_tokens", CHAT_NEW_TOKENS)
    text = _conversation([fields.get("instructions"), *messages])
    return Size(text, _tokens(text), 1, 1, limit)


def _conversation(messages: Iterable[Any]) -> str:
    """The text of a conversation: of strings, messages, and lists of parts."""
    return "\n".join([text for message in messages if (text := _text(message))])


def _text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    if isinstance(value, str):
        return "" if value.startswith(BILLING) else value
    if not isinstance(value, list):
        return ""
    texts = [part.get("text") for part in value if isinstance(part, dict)]
    return "".join([text for text in texts if isinstance(text, str) and not text.startswith(BILLING)])


def _prompt(value: Any) -> str | Sequence[int]:
    return value if isinstance(value, str | list) else ""


def _tokens(prompt: str | Sequence[int]) -> int:
    """How many tokens `prompt` has, or is expected to have."""
    return len(prompt) // CHARS_PER_TOKEN if isinstance(prompt, str) else len(prompt)


def _count(fields: dict[str, Any], name: str, default: int = 1) -> int:
    """A positive whole number, or `default` for whatever else stands there."""
    value = fields.get(name)
    if value is None:
        return default
    value = as_whole(value)
    return value if type(value) is int and value > 0 else default
