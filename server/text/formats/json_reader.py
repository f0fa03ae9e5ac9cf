"""Reads `syntax.JsonCall`: ``{"name": "f", "arguments": {…}}``."""

from __future__ import annotations

import json

from server.text.formats.json_scanner import JsonScanner
from server.text.formats.reader import WHITE, CallReader, CallSink, Step
from server.text.formats.syntax import JsonCall


class JsonReader(CallReader):
    """The arguments are given out as they come, once the name is known; keys may come in any order."""

    def __init__(self, body: JsonCall, sink: CallSink) -> None:
        super().__init__(sink)
        self._argument_keys = body.arguments
        self._step = self._opening
        self._scanner = JsonScanner()
        self._scanned = ""  # of a key or a name, or of arguments that came before the name
        self._key = ""
        self._name: str | None = None
        self._early: str | None = None  # whole arguments that came before the name
        self._begun = False

    def _expect(self, text: str, at: int, following: dict[str, Step]) -> int:
        """Pass over white space, then go on as `following` says for the character."""
        char = text[at]
        if char in following:
            self._step = following[char]
        elif char not in WHITE:
            return self._fail(at)
        return at + 1

    def _opening(self, text: str, at: int) -> int:
        return self._expect(text, at, {"{": self._first_key})

    def _first_key(self, text: str, at: int) -> int:
        return self._end(at) if text[at] == "}" else self._next_key(text, at)

    def _next_key(self, text: str, at: int) -> int:
        if text[at] != '"':
            return self._expect(text, at, {})
        self._scanner, self._scanned, self._step = JsonScanner(), "", self._in_key
        return at

    def _in_key(self, text: str, at: int) -> int:
        end = self._scan(text, at)
        self._scanned += text[at:end]
        if self._scanner.done:
            self._key, self._step = json.loads(self._scanned), self._colon
        return end

    def _colon(self, text: str, at: int) -> int:
        return self._expect(text, at, {":": self._before_value})

    def _before_value(self, text: str, at: int) -> int:
        char = text[at]
        if char in WHITE:
            return at + 1
        self._scanner, self._scanned, self._step = JsonScanner(), "", self._in_other
        if self._key == "name":
            if char != '"' or self._name is not None:
                return self._fail(at)
            self._step = self._in_name
        elif self._key in self._argument_keys:
            if char != "{" or self._begun or self._early is not None:
                return self._fail(at)
            self._step = self._in_early
            if self._name is not None:
                self._begin(self._name)
                self._step = self._in_arguments
        return at

    def _scan(self, text: str, at: int) -> int:
        end = self._scanner.feed(text, at)
        self.failed = self._scanner.failed
        return end

    def _in_other(self, text: str, at: int) -> int:
        end = self._scan(text, at)
        if self._scanner.done:
            self._step = self._after_value
        return end

    def _in_name(self, text: str, at: int) -> int:
        end = self._in_other(text, at)
        self._scanned += text[at:end]
        if self._scanner.done:
            name = json.loads(self._scanned)
            if name not in self._sink.tools:
                return self._fail(end)
            self._name = name
            if self._early is not None:
                self._begin(name)
                self._sink.arguments(self._early)
        return end

    def _in_arguments(self, text: str, at: int) -> int:
        end = self._in_other(text, at)
        self._sink.arguments(text[at:end])
        return end

    def _in_early(self, text: str, at: int) -> int:
        end = self._in_other(text, at)
        self._scanned += text[at:end]
        if self._scanner.done:
            self._early = self._scanned
        return end

    def _begin(self, name: str) -> None:
        self._begun = True
        self._sink.begin(name)

    def _after_value(self, text: str, at: int) -> int:
        return self._end(at) if text[at] == "}" else self._expect(text, at, {",": self._next_key})

    def _end(self, at: int) -> int:
        if self._name is None:
            return self._fail(at)
        if not self._begun:
            self._begin(self._name)
            self._sink.arguments("{}")
        self.done = True
        return at + 1
