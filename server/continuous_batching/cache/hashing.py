"""Content hashes of full blocks: equal hash means equal tokens at equal positions."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

ROOT = b""


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """128-bit hash of a block's tokens and, through `parent`, of everything before it."""
    return blake2b(array("q", tokens).tobytes(), digest_size=16, key=parent).digest()
