"""Tools as chat templates take them, calls of them, and what a conversation does with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

Definition = dict[str, Any]
"""``{"type": "function", "function": {…}}``."""
Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A tool's name and its arguments."""

    name: str
    arguments: dict[str, Any]

    @property
    def text(self) -> str:
        """As the chat template writes it, and as the model is to write it."""
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        return f'<tool_call>\n{{"name": "{self.name}", "arguments": {arguments}}}\n</tool_call>'


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A question, the calls it takes, what they return, and the answer."""

    question: str
    calls: tuple[Call, ...]
    results: tuple[str, ...]
    answer: str
    typed_freely: bool = False
    """Whether the question may be put in small letters and the like: no word of it goes into a call."""

    @property
    def calling(self) -> str:
        """The turn of the assistant that calls."""
        return "\n".join(call.text for call in self.calls)


def define(
    rng: Random, name: str, description: str, properties: Mapping[str, tuple[Schema, str]]
) -> Definition:
    """A tool's definition, in one of the spellings of its schema that clients send.

    Args:
        rng: what the spelling is drawn from.
        name: the tool's.
        description: empty for none.
        properties: the schema and the description of each parameter.
    """
    function: dict[str, Any] = {"name": name}
    if description:
        function["description"] = description
    told = rng.random() < 0.5
    parts = {
        key: part | ({"description": text} if text and told else {})
        for key, (part, text) in properties.items()
    }
    function["parameters"] = object_schema(rng, name, parts)
    return {"type": "function", "function": function}


def object_schema(rng: Random, title: str, properties: Mapping[str, Schema]) -> Schema:
    """The JSON schema of an object, as people and as pydantic write it."""
    style = rng.random()
    required = list(properties)
    if style < 0.6:
        return {"type": "object", "properties": dict(properties), "required": required}
    if style < 0.7:
        return {"type": "object", "properties": dict(properties)}
    if style < 0.8:
        closed = {"type": "object", "properties": dict(properties), "required": required}
        return closed | {"additionalProperties": False}
    titled = {
        key: {"title": key.replace("_", " ").title()} | part if rng.random() < 0.9 else part
        for key, part in properties.items()
    }
    schema: Schema = {"properties": titled, "required": required}
    return schema | ({"title": title, "type": "object"} if style < 0.95 else {"type": "object"})


def tool_lines(definitions: list[Definition]) -> str:
    """The tools as the chat template shows them, one a line."""
    return "\n".join(json.dumps(definition["function"], ensure_ascii=False) for definition in definitions)
