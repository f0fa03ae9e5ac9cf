"""What the schema of a tool says of its arguments, for formats in which every value is text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 8
"""How deep unions of a schema are looked into."""


class Tools:
    """The tools of a request by name, as the parser needs them.

    Args:
        schemas: for each tool the JSON schema of its arguments.
    """

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self._schemas = schemas

    def __contains__(self, name: object) -> bool:
        return name in self._schemas

    def __bool__(self) -> bool:
        return bool(self._schemas)

    def is_text(self, tool: str, argument: str) -> bool:
        """Whether the argument is a string and nothing else: its text can be given out as it comes."""
        return set(self._types(tool, argument)) <= {"string"}

    def value(self, tool: str, argument: str, text: str) -> str:
        """`text` as the JSON of the argument's type; a JSON string where it is of none."""
        for name in self._types(tool, argument):
            found = _as_type(text.strip(), name)
            if found is not None:
                return found
        return json.dumps(text, ensure_ascii=False)

    def _types(self, tool: str, argument: str) -> list[str]:
        properties = self._schemas[tool].get("properties")
        schema = properties.get(argument) if isinstance(properties, Mapping) else None
        return list(_types_of(schema, MAX_DEPTH))


def _types_of(schema: Any, depth: int) -> list[str]:
    if not isinstance(schema, Mapping) or depth == 0:
        return []
    declared = schema.get("type")
    types = [declared] if isinstance(declared, str) else []
    if isinstance(declared, list):
        types += [name for name in declared if isinstance(name, str)]
    for union in ("anyOf", "oneOf"):
        choices = schema.get(union)
        for choice in choices if isinstance(choices, list) else ():
            types += _types_of(choice, depth - 1)
    return types


def _as_type(text: str, name: str) -> str | None:
    """`text` as JSON of type `name`, or None where it is not of it."""
    if name == "boolean" and text.lower() in ("true", "false"):
        return text.lower()  # Python's spelling, too
    if name == "null" and text in ("null", "None"):
        return "null"
    kinds = {"integer": (int,), "number": (int, float), "array": (list,), "object": (dict,)}.get(name)
    if kinds is None:
        return None
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return text if isinstance(value, kinds) and not isinstance(value, bool) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
