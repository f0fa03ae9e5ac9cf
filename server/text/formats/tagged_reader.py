"""Reads `syntax.TaggedCall`: a name, then keys and values between tags."""

from __future__ import annotations

import json

from server.text.formats.reader import MAX_HEADER, NAME, WHITE, CallReader, CallSink, Step
from server.text.formats.syntax import TaggedCall


class TaggedReader(CallReader):
    """Values become JSON by the tool's schema; strings are given out as they come, others whole."""

    def __init__(self, body: TaggedCall, sink: CallSink) -> None:
        super().__init__(sink)
        self._body = body
        self._step = self._in_name
        self._name = self._key = ""
        self._text = ""  # of the key or value that is being read, as far as it was not given out
        self._begun = False
        self._count = 0
        self._streams = False  # the value is a string, whose beginning was given out

    def _in_name(self, text: str, at: int) -> int:
        found = NAME.match(text, at)
        assert found is not None  # it matches nothing, too
        self._name += found.group()
        at = found.end()
        if at == len(text) and len(self._name) <= MAX_HEADER:
            return at
        close = self._body.name_close
        if self._name not in self._sink.tools or (close and text[at] != close):
            return self._fail(at)
        self._step = self._gap
        return at + len(close)

    def _gap(self, text: str, at: int) -> int:
        """Between arguments: white space, then the next key or the end."""
        return self._marker(text, at, {self._body.key_open: self._in_key, self._body.end: self._end})

    def _before_value(self, text: str, at: int) -> int:
        return self._marker(text, at, {self._body.value_open: self._in_value})

    def _marker(self, text: str, at: int, following: dict[str, Step]) -> int:
        """Take one more character of a marker; where it is complete, go on as `following` says."""
        if not self.held and text[at] in WHITE:
            return at + 1
        held = self.held + text[at]
        if not any(marker.startswith(held) for marker in following):
            return self._fail(at)
        self.held = held
        if held in following:
            self.held, self._step = "", following[held]
            if not self._begun:
                self._begun = True
                self._sink.begin(self._name)
                self._sink.arguments("{")
            if held == self._body.end:
                self._sink.arguments("}")
                self.done = True
        return at + 1

    def _end(self, text: str, at: int) -> int:
        raise AssertionError("the call is done")

    def _take_until(self, text: str, at: int, close: str) -> tuple[int, bool]:
        """Add to `_text` up to the marker `close`; returns the new place and whether the marker came."""
        before = len(self._text)
        self._text += text[at:]
        end = self._text.find(close, max(0, before - len(close)))
        if end < 0:
            return len(text), False
        self._text = self._text[:end]
        return at + end + len(close) - before, True

    def _in_key(self, text: str, at: int) -> int:
        at, ended = self._take_until(text, at, self._body.key_close)
        if ended:
            self._key, self._text = self._text.strip(), ""
            self._step = self._before_value if self._body.value_open else self._in_value
            comma = ", " if self._count else ""
            self._count += 1
            self._sink.arguments(f"{comma}{json.dumps(self._key, ensure_ascii=False)}: ")
        return at

    def _in_value(self, text: str, at: int) -> int:
        close = self._body.value_close
        at, ended = self._take_until(text, at, close)
        is_text = self._sink.tools.is_text(self._name, self._key)
        if ended:
            self._end_value(is_text)
        elif is_text:
            self._give_out(close)
        return at

    def _give_out(self, close: str) -> None:
        """Give out what of a string cannot be the beginning of its end any more.

        The line breaks after the opening and before the closing tag are not of the value: the last one
        is kept back, too.
        """
        keep = next((n for n in range(len(close) - 1, 0, -1) if self._text.endswith(close[:n])), 0)
        size = len(self._text) - keep
        if self._text[:size].endswith("\n"):
            size -= 1
        if not size:
            return
        given, self._text = self._text[:size], self._text[size:]
        if not self._streams:
            self._streams = True
            given = given.removeprefix("\n")
            self._sink.arguments('"')
        self._sink.arguments(_escaped(given))

    def _end_value(self, is_text: bool) -> None:
        text = self._text.removesuffix("\n")
        if self._streams:
            self._sink.arguments(_escaped(text) + '"')
        elif is_text:
            self._sink.arguments(json.dumps(text.removeprefix("\n"), ensure_ascii=False))
        else:
            value = self._sink.tools.value(self._name, self._key, text.removeprefix("\n"))
            self._sink.arguments(value)
        self._text, self._streams, self._step = "", False, self._gap


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
