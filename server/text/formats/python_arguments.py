"""The grammar of calls as Python writes them: keyword arguments in the order of their schema.

Values are JSON, which the reader of such calls takes for Python; but what a model writes most, it writes as
Python does: True, False and None.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping
from typing import Any

from server.text.grammars.source import GrammarError, quoted

_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "anyOf", "type"})
_DEFINITIONS = ("$defs", "definitions")

Rule = Callable[[str, str], str]
"""Adds a rule of a name and a body; returns what it is called."""


def check_name(name: str) -> None:
    """Raise `GrammarError` unless Python can call a function of this name."""
    if not all(map(_is_name, name.split("."))):
        raise GrammarError(
            f"the tool {name!r} has a name that cannot be called in Python, as this model does"
        )


def python_arguments(schema: Mapping[str, Any], json: Callable[[dict[str, Any]], str], rule: Rule) -> str:
    """What stands between the parentheses of a call.

    Args:
        schema: of the arguments.
        json: the grammar of a JSON schema.
        rule: for what stands in several places.

    Raises:
        GrammarError: an argument has a name that Python does not take.
    """
    properties = schema.get("properties")
    required = schema.get("required") or ()
    definitions = {name: schema[name] for name in _DEFINITIONS if name in schema}
    # from the last argument to the first: what may follow it, and what may stand where none came before
    further, first = '""', '""'
    for key, part in reversed([*(properties if isinstance(properties, dict) else {}).items()]):
        if not _is_name(key):
            raise GrammarError(
                f"the argument {key!r} has a name that Python does not take, as this model calls"
            )
        argument = rule("argument", f": {quoted(f'{key}=')} {_value(part, definitions, json)}")
        is_required = key in required
        begun = f"{argument} {further}"
        first = rule("arguments", f": {begun}" if is_required else f": {begun} | {first}")
        another = f'", " {argument}'
        further = rule("further", f": {another if is_required else f'({another})?'} {further}")
    return first


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def _value(schema: Any, definitions: dict[str, Any], json: Callable[[dict[str, Any]], str]) -> str:
    if not isinstance(schema, dict):
        return json({})
    types, choices = schema.get("type"), schema.get("anyOf")
    if set(schema) <= _ANNOTATIONS:
        if isinstance(choices, list) and choices and types is None:
            return _any_of(choices, definitions, json)
        if types == "boolean":
            return '("True" | "False")'
        if types == "null":
            return '"None"'
    if isinstance(types, list) and types and choices is None and "enum" not in schema:
        return _any_of([schema | {"type": name} for name in types], definitions, json)
    return json(definitions | schema)


def _any_of(schemas: list[Any], definitions: dict[str, Any], json: Callable[[dict[str, Any]], str]) -> str:
    return f"({' | '.join(_value(schema, definitions, json) for schema in schemas)})"
