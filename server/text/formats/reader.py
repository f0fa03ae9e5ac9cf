"""Reads one tool call, and what it reports.

A reader takes the text of a call as it comes and says how far the call goes: `feed(text, at)` returns
where it stopped, which is the end of `text`, the end of the call (`done`), or the character that no call
can have there (`failed`). What a reader says to its sink is a function of the characters alone, not of how
they came. A call begins in the sink once its name is known to be one of the request's tools and its
arguments are about to come; until then it may still turn out to be text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from server.text.formats.tool_types import Tools

MAX_HEADER = 256
"""Characters of a name, or of all that stands before the arguments; more are none."""

WHITE = " \t\n\r"
NAME = re.compile(r"[\w.:/-]*")


class CallSink(Protocol):
    """Takes a call as it is read."""

    tools: Tools

    def begin(self, name: str) -> None: ...

    def arguments(self, text: str) -> None: ...


Step = Callable[[str, int], int]
"""Takes some of a text from a place on, and returns the new place."""


class CallReader:
    """Base of the readers, which are small state machines: `_step` is the state."""

    _step: Step

    def __init__(self, sink: CallSink) -> None:
        self.done = False
        self.failed = False
        self.held = ""
        """What was taken of the next marker, when the reader failed after the call's beginning."""
        self._sink = sink

    def feed(self, text: str, at: int) -> int:
        """Read on in `text` from `at`."""
        while at < len(text) and not (self.done or self.failed):
            at = self._step(text, at)
        return at

    def _fail(self, at: int) -> int:
        self.failed = True
        return at
