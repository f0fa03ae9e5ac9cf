"""Schemas as llguidance takes them, and formats where other libraries do not take all that it writes."""

from __future__ import annotations

from typing import Any

_LEAP_YEAR = "([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)"
_DATE = (
    "([1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    f"|02-(0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
_ZONE = "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_WORD = "[A-Za-z0-9_+-]{1,20}"
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,20}[A-Za-z0-9])?"

PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_CLOCK}{_ZONE}$",
    "date-time": f"^{_DATE}T{_CLOCK}{_ZONE}$",
    "email": rf"^{_WORD}(\.{_WORD}){{0,2}}@({_LABEL}\.){{1,3}}[A-Za-z]{{2,10}}$",
}
"""What strings of a format are written as: years from 1000 on, no leap seconds, addresses in ASCII."""


NOT_FORMATS = {"int32", "int64", "float", "double", "byte", "binary", "password"}
"""Notes of OpenAPI, which say nothing about the text of a value."""


def for_llguidance(schema: Any) -> Any:
    """A copy of a schema that llguidance takes, and whose values other libraries take.

    Keys keep their order, which is that of an object's properties.
    """
    if isinstance(schema, list):
        return [for_llguidance(part) for part in schema]
    if isinstance(schema, float) and schema.is_integer():
        return int(schema)  # as in `minItems: 2.0`
    if not isinstance(schema, dict):
        return schema
    copied = {}
    for key, part in schema.items():
        if key in ("const", "enum", "default", "examples"):
            copied[key] = part
        elif key != "format" or not isinstance(part, str):
            copied[key] = for_llguidance(part)
        elif part in PATTERNS and "pattern" not in schema:
            copied["pattern"] = PATTERNS[part]
        elif part not in NOT_FORMATS:
            copied[key] = part
    return copied
