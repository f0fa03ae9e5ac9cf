"""The tokens of a sequence, shared between the beams that grew from one stem."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np


class TokenHistory:
    """An append-only array of int32 tokens that forks in constant time.

    A fork shares everything up to that moment with its origin and sees nothing of what the origin
    appends later.

    Args:
        tokens: the first ones; an array of them is int32.
        parent: where it goes on.

    Raises:
        OverflowError: a token is beyond int32.
    """

    __slots__ = ("_parent", "_start", "_tokens", "length")

    def __init__(self, tokens: Iterable[int] | np.ndarray = (), parent: TokenHistory | None = None) -> None:
        self._parent = parent
        self._start: int = 0 if parent is None else parent.length
        self._tokens = array("i", tokens.tobytes() if isinstance(tokens, np.ndarray) else tokens)
        self.length: int = self._start + len(self._tokens)
        """Tokens; what `len` gives, at once: it is read for every token of every sequence."""

    def __len__(self) -> int:
        return self.length

    def append(self, token: int) -> None:
        self._tokens.append(token)
        self.length += 1

    def fork(self) -> TokenHistory:
        """A history that begins with all tokens of this one."""
        if not self._tokens and self._parent is not None and self._parent.length == self._start:
            return self._parent.fork()
        return TokenHistory(parent=self)

    @property
    def last(self) -> int:
        """The newest token."""
        return self._tokens[-1] if self._tokens else self._part(self._start - 1, self._start)[0]

    def slice(self, start: int, end: int) -> list[int]:
        """Tokens at positions `start` to `end` (exclusive)."""
        return self._part(start, end).tolist()

    def as_array(self, start: int, end: int) -> np.ndarray:
        """int32 [end - start]: the same, quicker, where no list is needed."""
        return np.frombuffer(self._part(start, end), np.int32)

    def _part(self, start: int, end: int) -> array[int]:
        """A copy: a history can only grow while nothing else refers to its memory."""
        if start >= self._start:
            return self._tokens[start - self._start : end - self._start]
        parts: list[array[int]] = []
        stem: TokenHistory | None = self
        while stem is not None and end > start:
            if end > stem._start:
                parts.append(stem._tokens[max(start - stem._start, 0) : end - stem._start])
                end = stem._start
            stem = stem._parent
        return array("i", b"".join([part.tobytes() for part in reversed(parts)]))
