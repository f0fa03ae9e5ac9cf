"""A call as Python writes it, ``f(a=1, b="x")``, as name and JSON."""

from __future__ import annotations

import ast
import json

MAX_CHARACTERS = 65_536
"""Of one call; a longer one is no call."""
MAX_DEPTH = 64
"""Nesting of its brackets; Python's own parser recurs."""


class NoCall(ValueError):
    """The text is not a call with literal keyword arguments."""


class CallEnd:
    """Finds the parenthesis that ends a call, in text that comes in pieces."""

    __slots__ = ("_depth", "_escaped", "_quote", "done", "failed")

    def __init__(self) -> None:
        self._depth = 0
        self._quote = ""
        self._escaped = False
        self.done = False
        self.failed = False

    def feed(self, text: str, at: int) -> int:
        """Scan `text` from `at` on; returns where the scan stopped, as `JsonScanner.feed` does."""
        while at < len(text) and not (self.done or self.failed):
            char = text[at]
            if self._quote:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == self._quote:
                    self._quote = ""
            elif char in "'\"":
                self._quote = char
            elif char in "([{":
                self._depth += 1
                self.failed = self._depth > MAX_DEPTH
            elif char in ")]}":
                self._depth -= 1
                self.done = self._depth == 0
                self.failed = self._depth < 0
            if self.failed:
                return at
            at += 1
        return at


class _JsonNames(ast.NodeTransformer):
    """What JSON calls true, false and null is a literal, too: models mix the two."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        values = {"true": True, "false": False, "null": None}
        return ast.copy_location(ast.Constant(values[node.id]), node) if node.id in values else node


def read_call(text: str) -> tuple[str, str]:
    """Name and arguments, as a JSON object, of the call `text`.

    Raises:
        NoCall: it is none, or its arguments are not literals that JSON can hold.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise NoCall("positional arguments")
        arguments = {}
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in arguments:
                raise NoCall("an argument without a name of its own")
            arguments[keyword.arg] = ast.literal_eval(_JsonNames().visit(keyword.value))
        return ast.unparse(call.func), json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except NoCall:
        raise
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise NoCall(str(error)) from None
