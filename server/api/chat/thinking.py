"""Whether and how much the model shall reason: wishes of the APIs as variables of the chat template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from protocol.chat import ReasoningEffort
from protocol.errors import ApiError, unprocessable
from server.text.conversation import is_variable
from server.text.tokenizer import Tokenizer

EFFORT = "reasoning_effort"
_SWITCHES = (("enable_thinking", "enable_thinking"), ("thinking", "thinking is defined"))
"""Variables with which templates turn reasoning on and off, and what shows that a template has one."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a request says of reasoning."""

    effort: ReasoningEffort | None = None
    enabled: bool | None = None
    """Whether the model shall reason at all."""
    by_default: bool = False
    """`enabled` is the API's default, not the request's word: a template without a switch is let be."""
    variables: dict[str, Any] = field(default_factory=dict)
    """Variables of the template that the request sets itself."""


def template_variables(
    tokenizer: Tokenizer, thinking: Thinking, name: Callable[[str], str]
) -> dict[str, Any]:
    """The variables for the chat template.

    Args:
        name: what the API calls a field of ``/v1/chat/completions``.

    Raises:
        ApiError: 422, the template does not know what is asked for.
    """
    variables = dict(thinking.variables)
    for variable in variables:
        if not (is_variable(variable) and tokenizer.template_has(variable)):
            raise _unknown(f"{name('chat_template_kwargs')}.{variable}", "has no such variable")
    switch = next((v for v, mark in _SWITCHES if tokenizer.template_shows(mark)), None)
    if thinking.effort is not None:
        off_alone = thinking.effort == "none" and not tokenizer.answer_format.reads_reasoning
        if tokenizer.template_has(EFFORT):
            variables.setdefault(EFFORT, thinking.effort)
        elif thinking.enabled is not None or (switch is None and not off_alone):
            raise _unknown(name(EFFORT), "knows no reasoning effort")
        elif switch is not None:
            variables.setdefault(switch, thinking.effort != "none")
    if thinking.enabled is not None:
        if switch is not None:
            variables.setdefault(switch, thinking.enabled)
        elif not thinking.by_default and thinking.enabled is not tokenizer.answer_format.reads_reasoning:
            reason = "knows no reasoning" if thinking.enabled else "cannot turn reasoning off"
            raise _unknown(name("thinking"), reason)
    return variables


def _unknown(field: str, reason: str) -> ApiError:
    return unprocessable(f"{field}: this model's chat template {reason}", param=field, code="unsupported")
