"""Content hashes of full blocks: equal hash means equal tokens at equal positions, seen by an equal model."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b


@lru_cache(maxsize=4096)  # one object for all requests, which saves each of them a look into memory
def cache_root(*parts: bytes) -> bytes:
    """Where a chain of hashes starts: two chains that start apart never meet.

    Args:
        parts: what keys and values depend on beside tokens and positions (the weights' fingerprint, an
            adapter), and what shall keep requests apart whose tokens are equal (a salt).
    """
    root = blake2b(digest_size=16)
    for part in parts:
        root.update(len(part).to_bytes(8, "little") + part)
    return root.digest()


def block_hash(parent: bytes, tokens: Sequence[int], key: bytes = b"") -> bytes:
    """128-bit hash of a block's content and, through `parent`, of everything before it.

    Args:
        parent: hash of the block before, or the chain's `cache_root`.
        tokens: of the block.
        key: what its keys and values depend on beside tokens (an image whose places these tokens hold).
    """
    content = array("q", tokens).tobytes()
    return blake2b(content + key if key else content, digest_size=16, key=parent).digest()
