"""Guesses the continuation of a text from the text itself."""

from __future__ import annotations

from collections.abc import Iterable

_TOKEN_BITS = 32


class NgramIndex:
    """Where each n-gram of a sequence was followed by something the last time.

    Grows with the sequence, so that a look-up costs the same however long the prompt is.
    Source: prompt lookup decoding (Saxena, 2023), transformers' ``prompt_lookup_num_tokens``.

    Args:
        max_size: tokens of the longest n-gram.
    """

    def __init__(self, max_size: int) -> None:
        self._tokens: list[int] = []
        self._followed: list[dict[int, int]] = [{} for _ in range(max_size)]  # the shortest first
        self._ends: list[int] = []  # the n-grams that end the sequence, as one number each

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Take the next tokens of the sequence."""
        known, followed, ends = self._tokens, self._followed, self._ends
        for token in tokens:
            for places, end in zip(followed, ends, strict=False):
                places[end] = len(known)
            known.append(token)
            ends = [token, *[end << _TOKEN_BITS | token for end in ends[: len(followed) - 1]]]
        self._ends = ends

    def find(self) -> tuple[int, int]:
        """The longest n-gram that ends the sequence and was there before.

        Returns:
            (place of the token that followed it the last time, its size); (0, 0) if even the last
            token is new.
        """
        for size in range(len(self._ends), 0, -1):
            place = self._followed[size - 1].get(self._ends[size - 1])
            if place is not None:
                return place, size
        return 0, 0

    def copy(self, place: int, count: int) -> list[int]:
        """`count` tokens from `place` on, which is within the sequence.

        Beyond the end they go on with themselves, as in LZ77: so a loop is foretold as far as wanted.
        """
        found = self._tokens[place : place + count]
        period = len(self._tokens) - place
        while len(found) < count:
            found.append(found[-period])
        return found
