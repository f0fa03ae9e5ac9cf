"""Finds markers in text that comes in pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to."""

    start: int
    """Everything before is no part of a marker."""
    marker: str | None
    """The marker at `start`; None where there is none, or it may yet become one."""


class Markers:
    """The leftmost of several strings, and of those the longest.

    Args:
        strings: none empty.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(sorted(set(strings), key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self._strings))) if strings else None
        self._longest = max(map(len, strings), default=0)

    def search(self, text: str, at: int, *, final: bool = False) -> Found:
        """Look in `text` from `at` on.

        Args:
            final: nothing follows `text`, so that half a marker at its end is none.
        """
        if self._pattern is None:
            return Found(len(text), None)
        match = self._pattern.search(text, at)
        begun = len(text) if final else self._begun(text, at)
        if match is not None and match.start() < begun:
            return Found(match.start(), match.group())
        return Found(begun, None)

    def _begun(self, text: str, at: int) -> int:
        """Where the earliest marker begins that the end of `text` cuts off."""
        for start in range(max(at, len(text) - self._longest + 1), len(text)):
            rest = text[start:]
            if any(len(rest) < len(string) and string.startswith(rest) for string in self._strings):
                return start
        return len(text)
