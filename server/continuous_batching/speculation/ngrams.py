"""Guesses the continuation of a text from the text itself."""

from __future__ import annotations

from collections.abc import Iterable


class NgramIndex:
    """Where each n-gram of a sequence was followed by something the last time.

    Grows with the sequence, so that a look-up costs the same however long the prompt is.
    Source: prompt lookup decoding (Saxena, 2023), transformers' ``prompt_lookup_num_tokens``.

    Args:
        max_size: tokens of the longest n-gram.
    """

    def __init__(self, max_size: int) -> None:
        self._tokens: list[int] = []
        self._followed: list[dict[tuple[int, ...], int]] = [{} for _ in range(max_size)]

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Take the next tokens of the sequence."""
        known = self._tokens
        for token in tokens:
            end = len(known)
            for size, places in enumerate(self._followed[:end], 1):
                places[tuple(known[end - size :])] = end
            known.append(token)

    def continuation(self, count: int) -> tuple[list[int], int]:
        """What followed the longest n-gram that ends the sequence, the last time that it was seen.

        A continuation that reaches the end of the sequence goes on with itself, as in LZ77: so a
        loop is foretold as far as wanted.

        Returns:
            (`count` tokens, size of the n-gram); ([], 0) if even the last token is new.
        """
        known = self._tokens
        for size in range(min(len(self._followed), len(known)), 0, -1):
            place = self._followed[size - 1].get(tuple(known[-size:]))
            if place is not None:
                found = known[place : place + count]
                period = len(known) - place
                while len(found) < count:
                    found.append(found[-period])
                return found, size
        return [], 0
