"""Keys of a prompt's beginning, by which prompts that begin alike are recognised.

A prompt is cut into chunks; each chunk's key covers everything before it. The first chunks are of one size;
further on each is an eighth of what is before it, so that long prompts, too, are distinguished with few keys.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterator, Sequence

CHUNK_CHARS = 512
"""About 128 tokens of text; as many token ids count as one chunk as well."""
CHUNK_IDS = 128
EVEN_CHUNKS = 16
GROWTH = 8
MAX_CHUNKS = 64
"""Of 128 token ids or 512 characters at first: some 470,000 or 1.9 million in all."""


def _ends(size: int) -> Iterator[int]:
    """Where chunks end: every `size`, then further and further apart."""
    end = 0
    for number in range(MAX_CHUNKS):
        end += size if number < EVEN_CHUNKS else end // GROWTH // size * size
        yield end


_CHARS_ENDS = tuple(_ends(CHUNK_CHARS))
_IDS_ENDS = tuple(_ends(CHUNK_IDS))


def prefix_keys(prompt: str | Sequence[int], salt: Hashable = None) -> list[int]:
    """Keys of the whole chunks that `prompt` begins with, shortest prefix first.

    Args:
        salt: prompts with unequal ones share nothing.
    """
    keys: list[int] = []
    key, start = hash(salt), 0
    for end in _CHARS_ENDS if isinstance(prompt, str) else _IDS_ENDS:
        if end > len(prompt):
            break
        chunk: str | bytes | Sequence[int] = prompt[start:end]
        if not isinstance(chunk, str):
            if type(chunk[0]) is not int:
                break  # no token ids: the server will refuse it
            try:
                chunk = array("q", chunk).tobytes()
            except (TypeError, OverflowError):
                break
        key = hash((key, chunk))
        keys.append(key)
        start = end
    return keys
