"""Content hashes of full blocks: equal hash means equal tokens at equal positions, seen by an equal model."""

from __future__ import annotations

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


def block_hash(parent: bytes, tokens: bytes, key: bytes = b"") -> bytes:
    """128-bit hash of a block's content and, through `parent`, of everything before it.

    Args:
        parent: hash of the block before, or the chain's `cache_root`.
        tokens: those of the block, int32.
        key: what its keys and values depend on beside tokens (an image whose places these tokens hold).
    """
    return blake2b(parent + tokens + key, digest_size=16).digest()
