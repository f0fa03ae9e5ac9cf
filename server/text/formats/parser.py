"""Sorts an answer into text, reasoning and tool calls, as it comes.

One machine serves streams and whole answers: a whole one is a stream that is fed at once. What was
given out after some text is a function of that text alone, not of the pieces in which it came, so that
a peer that is fed the same beginning goes on exactly.

What looks like a call and is none is text: a name that is not one of the request's tools, JSON that is
none. Where arguments had begun to be given out when the fault came, the call stays as it is, cut, and
what follows is text. White space between text, reasoning and calls is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from server.text.formats.markers import Found, Markers
from server.text.formats.parts import CallArguments, CallBegin, Content, Part, Reasoning, append, join
from server.text.formats.reader import WHITE, CallReader
from server.text.formats.readers import may_begin, reader_of
from server.text.formats.syntax import CallSyntax, Thinking
from server.text.formats.tool_types import Tools


class AnswerParser(Protocol):
    """Sorts one answer."""

    calls: int
    """Calls that have begun."""

    @property
    def ended(self) -> bool:
        """Whether the answer ended with a call, so that nothing after it counts."""
        ...

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain after this further text."""
        ...

    def finish(self) -> list[Part]:
        """What was held back, at the end of the answer."""
        ...


class OutputParser:
    """An `AnswerParser` for the formats of this package.

    Args:
        thinking: how reasoning is marked; None: it is not looked for.
        calls: how calls are written; None: they are not looked for.
        noise: markers to pass over.
        tools: those that may be called.
        in_reasoning: the prompt ends within reasoning.
        single: the answer ends with its first call; what follows is left out.
    """

    def __init__(
        self,
        thinking: Thinking | None,
        calls: CallSyntax | None,
        noise: tuple[str, ...],
        tools: Tools,
        *,
        in_reasoning: bool = False,
        single: bool = False,
    ) -> None:
        self.calls = 0
        self.tools = tools
        self._thinking = thinking
        self._syntax = calls or CallSyntax(bodies=())
        self._single = single
        own = self._syntax.opens + self._syntax.sections
        opens = (thinking.open,) if thinking else ()
        self._before_text = Markers([*own, *noise, *opens])
        self._within_text = Markers([*own, *noise, *(opens if thinking and thinking.anywhere else ())])
        self._closing = Markers([thinking.close] if thinking else [])
        self._around_calls = Markers([*own, *self._syntax.closes])
        self._buffer = ""
        self._at = 0
        self._final = False
        self._parts: list[Part] = []
        # each step takes the buffer from `_at` on and returns whether it came further
        self._step: Callable[[], bool] = self._in_reasoning if in_reasoning else self._in_text
        self._white = ""  # white space at the end so far: of the answer where text follows
        self._started = False  # there was text
        self._trim = in_reasoning  # no white space until there is text
        self._region = ""  # what was taken of a call that may turn out to be text
        self._called = False  # there was a call since the last text
        self._expects = False  # the next character may be that of a call
        self._reader: CallReader | None = None
        self._begun = False  # the reader's call was given out

    @property
    def ended(self) -> bool:
        return self._step == self._at_end

    def feed(self, text: str) -> list[Part]:
        self._buffer = self._buffer[self._at :] + text
        self._at = 0
        while self._at < len(self._buffer) and self._step():
            pass
        parts, self._parts = self._parts, []
        return parts

    def finish(self) -> list[Part]:
        self._final = True
        parts = self.feed("")
        if self._step == self._between:
            self._leave_region()
        elif self._step == self._in_call and not self._begun:
            self._take(self._region, Content)
        if self._step != self._in_reasoning and self._white and not self.calls:
            self._parts.append(Content(self._white))
        return join(parts, self._parts)

    # -- text and reasoning --------------------------------------------------------------------

    def _in_text(self) -> bool:
        if not self._started and self._syntax.bare:
            rest = self._buffer[self._at :]
            white = len(rest) - len(rest.lstrip(WHITE))
            if white:
                self._take(rest[:white], Content)
                self._at += white
                return True
            if rest[0] in self._syntax.bare:
                self._enter_region()
                return True
        markers = self._within_text if self._started else self._before_text
        return self._take_up_to(markers, Content, self._on_marker)

    def _in_reasoning(self) -> bool:
        return self._take_up_to(self._closing, Reasoning, self._end_reasoning)

    def _take_up_to(
        self, markers: Markers, kind: type[Content] | type[Reasoning], react: Callable[[str], None]
    ) -> bool:
        """Take text up to a marker, which `react` takes; False where more has to come first."""
        found = markers.search(self._buffer, self._at, final=self._final)
        text = self._buffer[self._at : found.start]
        if kind is Content and not self._started and (shown := text.lstrip(WHITE)):
            # the first character of text decides which markers count from then on
            text = text[: len(text) - len(shown) + 1]
            found = Found(self._at + len(text), "")
        self._at = found.start
        self._take(text, kind)
        if found.marker is None:
            return False
        self._at += len(found.marker)
        if found.marker:
            react(found.marker)
        return True

    def _take(self, text: str, kind: type[Content] | type[Reasoning]) -> None:
        """Give out `text`, but for white space at its end."""
        text = self._white + text
        if self._trim:
            text = text.lstrip(WHITE)
        shown = text.rstrip(WHITE)
        self._white = text[len(shown) :]
        if shown:
            self._trim = False
            self._started = self._started or kind is Content
            append(self._parts, kind(shown))

    def _on_marker(self, marker: str) -> None:
        if self._thinking is not None and marker == self._thinking.open:
            self._step, self._white, self._trim = self._in_reasoning, "", True
        elif marker in self._syntax.opens or marker in self._syntax.sections:
            self._step, self._region, self._called = self._between, marker, False
            self._expects = marker in self._syntax.opens

    def _end_reasoning(self, _: str) -> None:
        self._step, self._white, self._trim = self._in_text, "", True

    # -- calls ---------------------------------------------------------------------------------

    def _enter_region(self) -> None:
        """The answer begins like a call without a marker."""
        char = self._buffer[self._at]
        self._step, self._region, self._called, self._expects = self._between, "", False, True
        if not any(may_begin(body, char) for body in self._syntax.bodies):
            self._region = char
            self._at += 1

    def _between(self) -> bool:
        """Around calls: markers, white space and separators, then a call or the end of the region."""
        found = self._around_calls.search(self._buffer, self._at, final=self._final)
        if found.start == self._at:
            if found.marker is None:
                return False
            if self._called or found.marker not in self._syntax.closes:
                self._at += len(found.marker)
                self._on_marker_between(found.marker)
                return True
        char = self._buffer[self._at]
        body = next((body for body in self._syntax.bodies if may_begin(body, char)), None)
        if char in WHITE:
            self._region += char
        elif self._called and char in self._syntax.separators:
            self._region, self._expects = char, True
        elif self._expects and body is not None:
            self._reader, self._begun, self._step = reader_of(body, self), False, self._in_call
            return True
        else:
            self._leave_region()
            return True
        self._at += 1
        return True

    def _on_marker_between(self, marker: str) -> None:
        self._expects = marker in self._syntax.opens
        if self._called:
            self._region = ""
        self._region += marker

    def _leave_region(self) -> None:
        """What follows is text, and so is what looked like the beginning of a call."""
        self._step, self._trim = self._in_text, self._called
        if self._expects or not self._called:
            self._trim = False
            self._take(self._region, Content)

    def _in_call(self) -> bool:
        assert self._reader is not None
        end = self._reader.feed(self._buffer, self._at)
        if not self._begun:
            self._region += self._buffer[self._at : end]
        self._at = end
        if self._reader.done:
            self._region, self._called, self._expects = "", True, False
            self._step = self._at_end if self._single else self._between
        elif self._reader.failed:
            self._step, self._trim = self._in_text, False
            self._take(self._reader.held if self._begun else self._region, Content)
        return True

    def _at_end(self) -> bool:
        self._at = len(self._buffer)
        return False

    def begin(self, name: str) -> None:
        """The reader's call begins."""
        self._begun, self._white = True, ""
        append(self._parts, CallBegin(self.calls, name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """More of its arguments come."""
        if text:
            append(self._parts, CallArguments(self.calls - 1, text))
