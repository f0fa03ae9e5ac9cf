"""From the form that a request asks for to a grammar for llguidance, within bounds.

llguidance bounds the work of a token by itself. What is bounded here is what takes it long to compile, so
that a hostile schema costs one clear error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from protocol.structured import MAX_FORM_BYTES, StructuredOutputs
from server.text.grammars.dialect import for_llguidance

MAX_BYTES = MAX_FORM_BYTES
ROOM = 1024
"""Bytes that a grammar may have beyond that: what is written around a form to make it one."""
MAX_DEPTH = 64
"""Nested objects and arrays of a schema."""
MAX_PROPERTIES = 1000
"""Properties of one object: llguidance's work grows with their square."""
MAX_DIVISOR = 10_000
"""Digits of a `multipleOf`, read as a whole number."""

WHITESPACE = r"( |\n[ \t]{0,24})?"
"""Between the tokens of JSON: none, a space, or a new line that is indented. A weak model would go on with
more of it to no end."""


class GrammarError(ValueError):
    """A grammar that is not supported; the message says why in one line."""


def as_grammar(form: StructuredOutputs) -> StructuredOutputs:
    """The same form as a grammar: what is left is to compile it, which Python has no part in.

    Raises:
        GrammarError: it exceeds a bound.
    """
    texts = {name: getattr(form, name) for name in ("regex", "choice", "grammar")}
    asked: dict[str, Any] = {"json": form.json_schema, **texts}
    return StructuredOutputs.model_construct(grammar=grammar_source(asked))


def grammar_source(asked: dict[str, Any]) -> str:
    """The grammar for the fields of a `protocol.structured.StructuredOutputs`, in llguidance's Lark.

    Raises:
        GrammarError: it exceeds a bound.
    """
    from llguidance import regex_to_lark

    if asked.get("regex") is not None:
        # digits, letters and spaces are those of ASCII, as in JavaScript: what most who write \d mean
        expression = regex_to_lark(_bounded(asked["regex"], "regex"), use_ascii="dws")
        return f"start: /{expression}/"
    if asked.get("grammar") is not None:
        return _bounded(asked["grammar"], "grammar", MAX_BYTES + ROOM)
    if asked.get("choice") is not None:
        return _bounded(choice_of(asked["choice"]), "choice")
    schema = {"type": "object"} if asked.get("json") is None else asked["json"]
    return f"%llguidance {{}}\nstart: %json {bounded_schema(schema)}"


def choice_of(texts: list[str]) -> str:
    """A Lark grammar whose answers are `texts`."""
    return "start: CHOICE\nCHOICE: " + " | ".join(quoted(text) for text in texts)  # an automaton, not rules


def quoted(text: str) -> str:
    """`text` as a literal of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def bounded_schema(schema: dict[str, Any] | bool, *, lenient: bool = False) -> str:
    """A JSON schema as text for llguidance, with bounded whitespace.

    Args:
        lenient: pass over keywords that cannot be honoured.

    Raises:
        GrammarError: it exceeds a bound.
    """
    if isinstance(schema, bool):
        if not schema:
            raise GrammarError("json: the schema `false` allows no answer")
        schema = {}
    _check_schema(schema)
    options = {"whitespace_pattern": WHITESPACE, "lenient": lenient}
    given = for_llguidance(schema) | {"x-guidance": options}
    return _bounded(json.dumps(given, ensure_ascii=False), "json")


def _bounded(text: str, name: str, most: int = MAX_BYTES) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise GrammarError(f"{name}: a lone surrogate is not text") from None
    if size > most:
        raise GrammarError(f"{name}: {size} bytes exceed the {MAX_BYTES} that a grammar may have")
    return text


def _check_schema(schema: dict[str, Any]) -> None:
    for node, depth in _objects(schema):
        if depth > MAX_DEPTH:
            raise GrammarError(f"json: the schema is nested deeper than {MAX_DEPTH}")
        properties, divisor = node.get("properties"), node.get("multipleOf")
        if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
            raise GrammarError(
                f"json: {len(properties)} properties of one object exceed the {MAX_PROPERTIES} allowed"
            )
        if isinstance(divisor, int | float) and not _is_small(divisor):
            raise GrammarError(
                f"json: multipleOf: the digits of {divisor} exceed {MAX_DIVISOR:,} as a whole number"
            )


def _is_small(divisor: float) -> bool:
    """Whether the automaton for multiples of `divisor` has few states: one for each remainder."""
    number = Decimal(str(divisor)).normalize().as_tuple()
    digits = int("".join(map(str, number.digits)))
    return isinstance(number.exponent, int) and abs(number.exponent) <= 20 and digits <= MAX_DIVISOR


def _objects(schema: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
    """Every object within `schema`, with its depth; a stack of its own, for any depth.

    Stops early at a large schema: to write it down as a whole would keep the interpreter from other threads.

    Raises:
        GrammarError: its texts alone exceed the bytes that a grammar may have.
    """
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    size = 0
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, str):
            size += len(node)
        elif isinstance(node, dict):
            yield node, depth
            size += sum(len(key) for key in node)
            waiting += [(child, depth + 1) for child in node.values()]
        elif isinstance(node, list):
            waiting += [(child, depth + 1) for child in node]
        if size > MAX_BYTES:
            raise GrammarError(f"json: over {size} bytes exceed the {MAX_BYTES} that a grammar may have")
