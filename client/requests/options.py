"""The options of a request by the names that conditions of servers use (`protocol.accepts`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from protocol.body import as_whole
from protocol.openai import is_greedy
from protocol.routes import COMPLETION_V1, COMPLETION_V2

NATIVE = (COMPLETION_V1, COMPLETION_V2)
_MAX_NEW_TOKENS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""What the APIs call it; the first that is set counts."""

Fields = Mapping[str, Any]


def option_of(route: str, fields: Fields, name: str) -> Any:
    """The value of an option.

    Args:
        route: on which the request came.
        fields: its body.
        name: as `protocol.accepts` has it.

    Returns:
        None where the option is not set, or its value makes no sense.
    """
    if (read := _EVERYWHERE.get(name)) is not None:
        return read(fields)
    if route in NATIVE:
        config = fields.get("generation_config")
        return config.get(name) if isinstance(config, dict) else None
    if (read := _OPENAI.get(name)) is not None:
        return read(fields)
    return fields.get(name)


def _prompt_tokens(fields: Fields) -> int | None:
    """Tokens of the longest prompt, as far as they are given as such."""
    prompt = fields.get("prompt")
    if not isinstance(prompt, list) or not prompt:
        return None
    if isinstance(prompt[0], int):
        return len(prompt)
    return max((len(one) for one in prompt if isinstance(one, list)), default=None)


def _do_sample(fields: Fields) -> bool:
    return not is_greedy(
        fields.get("temperature"), _number(fields.get("num_beams")), _number(fields.get("n"))
    )


def _logprobs(fields: Fields) -> int | None:
    """How many are wanted beside the chosen one's; chats say whether and how many apart."""
    value = as_whole(fields.get("logprobs"))
    if value is True:
        return _number(fields.get("top_logprobs"), 0)
    return value if type(value) is int else None


def _max_new_tokens(fields: Fields) -> Any:
    return next((fields[name] for name in _MAX_NEW_TOKENS if fields.get(name) is not None), None)


def _number(value: Any, default: int = 1) -> int:
    value = as_whole(value)
    return value if type(value) is int and value > 0 else default


_EVERYWHERE: dict[str, Callable[[Fields], Any]] = {
    "prompt_tokens": _prompt_tokens,
    "stream": lambda fields: fields.get("stream"),
    "resume": lambda fields: fields.get("resume"),
}
_OPENAI: dict[str, Callable[[Fields], Any]] = {
    "do_sample": _do_sample,
    "logprobs": _logprobs,
    "max_new_tokens": _max_new_tokens,
}
"""Options that OpenAI's routes call otherwise."""
