"""Sorts the answers of one request into text, reasoning and tool calls, delta by delta."""

from __future__ import annotations

from collections.abc import Sequence

from server.api.service import Delta
from server.text.formats.parser import AnswerParser
from server.text.formats.parts import join


class AnswerReader:
    """Reads a request's answers.

    Args:
        parsers: one for each answer.
    """

    def __init__(self, parsers: Sequence[AnswerParser]) -> None:
        self._parsers = parsers

    def read(self, delta: Delta) -> None:
        """Put the text of `delta` into its parts; some may be held back until more comes."""
        parser = self._parsers[delta.index]
        delta.parts = parser.feed(delta.text)
        delta.text = ""
        if delta.finish_reason is not None:
            join(delta.parts, parser.finish())
            if parser.ended:  # the limit cut only what is left out
                delta.finish_reason = "stop"

    def calls(self, index: int) -> int:
        """Calls that answer `index` has begun."""
        return self._parsers[index].calls
