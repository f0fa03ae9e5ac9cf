"""One JSON value (RFC 8259), checked character by character as it comes."""

from __future__ import annotations

import re
from collections.abc import Callable

MAX_DEPTH = 256
"""Nesting of lists and objects from which on a value is none: whoever parses it next may recur."""

Step = Callable[[str, int], int]

_WHITE = " \t\n\r"
_NUMBER_CHARS = re.compile(r"[-+.0-9eE]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_LITERALS = {"t": "true", "f": "false", "n": "null"}
_HEX = frozenset("0123456789abcdefABCDEF")


class JsonScanner:
    """Finds the end of a JSON value in text that comes in pieces.

    The first character must be that of the value. What was scanned is a function of the characters
    alone, not of how they came.
    """

    __slots__ = ("_after_string", "_number", "_rest", "_stack", "_step", "done", "failed")

    def __init__(self) -> None:
        self._stack: list[str] = []  # the brackets that are open
        self._step: Step = self._value
        self._after_string: Step = self._next
        self._rest = ""  # of a literal, or the hexadecimal digits of an escape
        self._number = ""
        self.done = False
        """The value is complete."""
        self.failed = False
        """The next character cannot stand there."""

    def feed(self, text: str, at: int) -> int:
        """Scan `text` from `at` on; returns where the scan stopped.

        That is the end of `text`, the end of the value (`done`), or the character at fault (`failed`).
        """
        while at < len(text) and not (self.done or self.failed):
            at = self._step(text, at)
        return at

    # each state takes text[at:] as far as it goes and returns the new place

    def _fail(self, at: int) -> int:
        self.failed = True
        return at

    def _after_value(self) -> None:
        self._step = self._next
        self.done = not self._stack

    def _value(self, text: str, at: int) -> int:
        char = text[at]
        if char in _WHITE and self._stack:
            return at + 1
        if char in "{[":
            if len(self._stack) >= MAX_DEPTH:
                return self._fail(at)
            self._stack.append(char)
            self._step = self._first_key if char == "{" else self._first_item
        elif char == '"':
            self._step, self._after_string = self._string, self._next
        elif char in _LITERALS:
            self._step, self._rest = self._literal, _LITERALS[char][1:]
        elif char == "-" or (char.isascii() and char.isdigit()):
            self._step, self._number = self._digits, char
        else:
            return self._fail(at)
        return at + 1

    def _first_item(self, text: str, at: int) -> int:
        if text[at] == "]":
            return self._close(at)
        if text[at] not in _WHITE:
            self._step = self._value
            return at
        return at + 1

    def _first_key(self, text: str, at: int) -> int:
        return self._close(at) if text[at] == "}" else self._key(text, at)

    def _key(self, text: str, at: int) -> int:
        if text[at] == '"':
            self._step, self._after_string = self._string, self._colon
        elif text[at] not in _WHITE:
            return self._fail(at)
        return at + 1

    def _colon(self, text: str, at: int) -> int:
        if text[at] == ":":
            self._step = self._value
        elif text[at] not in _WHITE:
            return self._fail(at)
        return at + 1

    def _next(self, text: str, at: int) -> int:
        char, opened = text[at], self._stack[-1]
        if char == ",":
            self._step = self._key if opened == "{" else self._value
        elif char == ("}" if opened == "{" else "]"):
            return self._close(at)
        elif char not in _WHITE:
            return self._fail(at)
        return at + 1

    def _close(self, at: int) -> int:
        self._stack.pop()
        self._after_value()
        return at + 1

    def _string(self, text: str, at: int) -> int:
        found = _PLAIN.match(text, at)
        assert found is not None  # it matches nothing, too
        at = found.end()
        if at == len(text):
            return at
        if text[at] == "\\":
            self._step = self._escape
        elif text[at] == '"':
            self._step = self._after_string
            self.done = not self._stack
        else:
            return self._fail(at)
        return at + 1

    def _escape(self, text: str, at: int) -> int:
        if text[at] == "u":
            self._step, self._rest = self._unicode, "...."
        elif text[at] in '"\\/bfnrt':
            self._step = self._string
        else:
            return self._fail(at)
        return at + 1

    def _unicode(self, text: str, at: int) -> int:
        if text[at] not in _HEX:
            return self._fail(at)
        self._rest = self._rest[1:]
        if not self._rest:
            self._step = self._string
        return at + 1

    def _literal(self, text: str, at: int) -> int:
        if text[at] != self._rest[0]:
            return self._fail(at)
        self._rest = self._rest[1:]
        if not self._rest:
            self._after_value()
        return at + 1

    def _digits(self, text: str, at: int) -> int:
        found = _NUMBER_CHARS.match(text, at)
        assert found is not None
        self._number += found.group()
        at = found.end()
        if at < len(text):  # only what follows a number ends it
            if _NUMBER.fullmatch(self._number) is None:
                return self._fail(at)
            self._after_value()
        return at
