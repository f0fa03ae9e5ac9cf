"""How much there is to read in a JSON text, told without reading it.

A reader of JSON makes all values in one piece, and nothing else of the process runs meanwhile. How long that
takes depends on the number of values far more than on the bytes.
"""

from __future__ import annotations

PAIR = 4
"""What a key of an object counts, in values of an array."""
CONTAINER = 8
"""What an object or an array counts."""


def too_many_values(text: bytes, most: int) -> bool:
    """Whether a JSON `text` has more than `most` values, of which keys and containers count as several.

    The answer means nothing for a text that is not JSON.
    """
    if most_values(text) <= most:  # as nearly always
        return False
    found, begin = 0, 0
    while True:
        opening = text.find(b'"', begin)
        found += most_values(text[begin:] if opening < 0 else text[begin:opening])
        if found > most:
            return True
        if opening < 0 or (begin := _end_of_string(text, opening)) < 0:
            return False


def most_values(text: bytes) -> int:
    """An upper bound of the values in `text`, found in no time: separators in strings count, too."""
    return text.count(b",") + PAIR * text.count(b":") + CONTAINER * (text.count(b"{") + text.count(b"["))


def _end_of_string(text: bytes, opening: int) -> int:
    """Behind the string that begins at `opening`; -1: it has no end."""
    begin = opening + 1
    while (closing := text.find(b'"', begin)) >= 0:
        part = text[begin:closing]
        if (len(part) - len(part.rstrip(b"\\"))) % 2 == 0:
            return closing + 1
        begin = closing + 1
    return -1
