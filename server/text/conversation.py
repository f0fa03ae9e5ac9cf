"""A conversation as every chat API means it, and as a checkpoint's chat template takes it.

``/v1/chat/completions``, ``/v1/responses`` and ``/v1/messages`` say the same things in different words. Each
is translated to a `Conversation`; from there on nothing knows which API a request came by.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from utils.json_values import too_many_values

Role = Literal["system", "developer", "user", "assistant", "tool"]

MAX_ARGUMENT_VALUES = 2**16
"""JSON values in the arguments of a call in a history, as `too_many_values` counts them."""

_OWN = frozenset(
    (
        *("conversation", "messages", "tools", "documents", "chat_template", "tokenize", "padding"),
        *("add_generation_prompt", "continue_final_message", "sanitize_control_tokens", "truncation"),
        *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
    )
)
"""Names that are no variables of a template."""


@dataclass(slots=True)
class ToolCall:
    """A call that the assistant made in an earlier turn."""

    id: str
    name: str
    arguments: str
    """JSON object, as text; empty where there are none."""


@dataclass(slots=True)
class Message:
    """One turn."""

    role: str
    """A `Role`, or whatever else the checkpoint's template knows."""
    texts: list[str] | None = None
    """Parts of the content; None where the turn has none."""
    reasoning: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_call_id: str | None = None
    """Of a tool's turn: the call that it answers."""
    name: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts or ())


@dataclass(slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of its arguments."""

    def definition(self) -> dict[str, Any]:
        """As chat templates take it, which is as OpenAI writes it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        if self.parameters is not None:
            function["parameters"] = self.parameters
        return {"type": "function", "function": function}


@dataclass(slots=True)
class Conversation:
    """What a chat request gives the model to read."""

    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)
    """Further variables of the template, such as ``enable_thinking``."""
    add_generation_prompt: bool = True
    """Whether the prompt ends with the beginning of the assistant's turn."""
    continue_final_message: bool = False
    """Whether the answer goes on with the last message instead."""

    def final_text(self) -> str | None:
        """The beginning of the answer, where it is the last message that goes on."""
        return self.messages[-1].text if self.continue_final_message else None

    def template_messages(self, template: str, *, arguments_as_text: bool = False) -> list[dict[str, Any]]:
        """The messages as a chat template takes them.

        Args:
            template: its text; one that knows no ``developer`` gets ``system``.
            arguments_as_text: it takes the arguments of calls as JSON text.

        Raises:
            ValueError: arguments that are no JSON object.
        """
        knows_developer = "developer" in template
        return [
            _template_message(message, knows_developer=knows_developer, as_text=arguments_as_text)
            for message in self.messages
        ]


def _template_message(message: Message, *, knows_developer: bool, as_text: bool) -> dict[str, Any]:
    role = message.role
    if role == "developer" and not knows_developer:
        role = "system"
    turn: dict[str, Any] = {"role": role, "content": None if message.texts is None else message.text}
    if message.name is not None:
        turn["name"] = message.name
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call, as_text=as_text)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _arguments(call: ToolCall, *, as_text: bool) -> str | dict[str, Any]:
    text = call.arguments.strip() or "{}"
    if too_many_values(text.encode(errors="replace"), MAX_ARGUMENT_VALUES):
        raise ValueError(f"the arguments of the call of {call.name!r} have too many values to be read")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the arguments of the call of {call.name!r} are not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"the arguments of the call of {call.name!r} are not a JSON object")
    return text if as_text else value


def is_variable(name: str) -> bool:
    """Whether a request may set the variable `name` of a chat template."""
    return name.isidentifier() and name not in _OWN
