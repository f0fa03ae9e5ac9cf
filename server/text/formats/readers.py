"""The reader for each kind of call."""

from __future__ import annotations

import re

from server.text.formats.json_reader import JsonReader
from server.text.formats.json_scanner import JsonScanner
from server.text.formats.python_call import MAX_CHARACTERS, CallEnd, NoCall, read_call
from server.text.formats.reader import MAX_HEADER, NAME, CallReader, CallSink
from server.text.formats.syntax import CallBody, JsonCall, NamedCall, TaggedCall
from server.text.formats.tagged_reader import TaggedReader


def may_begin(body: CallBody, char: str) -> bool:
    """Whether a call of this kind may begin with `char`."""
    if isinstance(body, JsonCall):
        return char == "{"
    return char == "_" or char.isalnum()


def reader_of(body: CallBody, sink: CallSink) -> CallReader:
    """A reader for the next call."""
    if isinstance(body, JsonCall):
        return JsonReader(body, sink)
    if isinstance(body, NamedCall):
        return NamedReader(body, sink)
    if isinstance(body, TaggedCall):
        return TaggedReader(body, sink)
    return PythonReader(sink)


class NamedReader(CallReader):
    """`NamedCall`: a header up to the first brace, then the arguments as they come."""

    def __init__(self, body: NamedCall, sink: CallSink) -> None:
        super().__init__(sink)
        self._header = re.compile(body.header)
        self._head = ""
        self._scanner = JsonScanner()
        self._step = self._in_header

    def _in_header(self, text: str, at: int) -> int:
        brace = text.find("{", at)
        end = len(text) if brace < 0 else brace
        room = MAX_HEADER - len(self._head)
        if end - at > room:
            return self._fail(at + room)
        self._head += text[at:end]
        if brace >= 0:
            found = self._header.fullmatch(self._head)
            name = None if found is None else next(filter(None, found.groups()), None)
            if name is None or name not in self._sink.tools:
                return self._fail(end)
            self._sink.begin(name)
            self._step = self._in_arguments
        return end

    def _in_arguments(self, text: str, at: int) -> int:
        end = self._scanner.feed(text, at)
        self._sink.arguments(text[at:end])
        self.done, self.failed = self._scanner.done, self._scanner.failed
        return end


class PythonReader(CallReader):
    """`PythonCall`: given out whole, at its closing parenthesis."""

    def __init__(self, sink: CallSink) -> None:
        super().__init__(sink)
        self._text = ""
        self._scan = CallEnd()
        self._step = self._in_name

    def _in_name(self, text: str, at: int) -> int:
        found = NAME.match(text, at)
        assert found is not None  # it matches nothing, too
        self._text += found.group()
        at = found.end()
        if at == len(text) and len(self._text) <= MAX_HEADER:
            return at
        if text[at : at + 1] != "(" or self._text not in self._sink.tools:
            return self._fail(at)
        self._step = self._in_arguments
        return at

    def _in_arguments(self, text: str, at: int) -> int:
        room = MAX_CHARACTERS - len(self._text)
        end = self._scan.feed(text[: at + room], at)
        self._text += text[at:end]
        if self._scan.failed or (not self._scan.done and len(self._text) == MAX_CHARACTERS):
            return self._fail(end)
        if self._scan.done:
            try:
                name, arguments = read_call(self._text)
            except NoCall:
                return self._fail(end)
            self._sink.begin(name)
            self._sink.arguments(arguments)
            self.done = True
        return end
