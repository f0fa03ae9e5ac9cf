"""Attention to what several decodes begin with: read once for as many as a tile of queries has room for.

`ops.paged_attention.SharedPrefixes` says which these are. A program attends to a piece of what its own
context has behind the prefix, and to a piece of the prefix for all that share it. Whichever of their programs
ends last merges the pieces of all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from server.ops.triton.decode_pieces import merge_pieces, piece_of

_HELPERS = tl.constexpr(4)
"""Decodes whose programs divide a prefix among them, at most."""
_LEAST = tl.constexpr(128)
"""Tokens of a piece, at least: of smaller ones there is more to merge than to read."""
SLOTS = tl.constexpr(1 + _HELPERS.value)
"""Pieces that a decode may be merged from, for each that a context alone would be split into."""


@triton.jit
def prefix_of(prefixes, sharers, decode, TILE: tl.constexpr):
    """(tokens of a decode's prefix, what `SharedPrefixes.sharers` says of it, tokens that pieces of what is
    behind the prefix are multiples of); where nothing is shared at all, `sharers` is None."""
    prefix, sharing, unit = 0, 1, TILE
    if sharers is not None:
        prefix, sharing = tl.load(prefixes + decode), tl.load(sharers + decode)
        unit = tl.where(sharing == 1, TILE, _LEAST)
    return prefix, sharing, unit


@triton.jit
def leader_of(sharers, decode, sharing):
    """(the leader of a decode that shares its prefix, how many share it)."""
    leader = decode + tl.minimum(sharing, 0)
    return leader, tl.load(sharers + leader)


@triton.jit
def piece_of_prefix(prefix, place, count, split, SPLITS: tl.constexpr):
    """(first token, end, which it is, how many there are) of the piece of a prefix for a program.

    Args:
        prefix: tokens.
        place: of the program's decode among the `count` that share the prefix.
        split: which of the SPLITS programs of its decode.
    """
    helpers = tl.minimum(count, _HELPERS)
    piece, pieces = piece_of(prefix, helpers * SPLITS, _LEAST)
    # the last of a decode's programs come first: the first ones have its own context to attend to
    index = tl.where(place < helpers, (SPLITS - 1 - split) * helpers + place, pieces)
    begin = tl.minimum(index * piece, prefix)
    return begin, tl.minimum(begin + piece, prefix), index, pieces


@triton.jit
def merge_sharers(
    partial, scales, arrivals, output, positions, leader, count, kv_head, prefix, pieces,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr,
    SPLITS: tl.constexpr, MERGE_HEADS: tl.constexpr,
):  # fmt: skip
    """Merge the pieces of all that share a prefix, which has `pieces`, in the last of their programs."""
    TILE: tl.constexpr = max(2048 // (MERGE_HEADS * DIM_TILE), 1)  # as much as the registers of a warp hold
    arrived = arrivals + leader * KV_HEADS + kv_head
    tl.debug_barrier()  # every thread has stored before one of them says so
    if tl.atomic_add(arrived, 1, sem="acq_rel") == count * SPLITS - 1:
        for decode in range(leader, leader + count):
            _, own = piece_of(tl.load(positions + decode) - prefix, SPLITS, _LEAST)
            merge_pieces(
                partial, scales, output, decode * KV_HEADS + kv_head, pieces + own,
                GROUP, HEAD_DIM, DIM_TILE, SLOTS * SPLITS, MERGE_HEADS, TILE,
            )  # fmt: skip
        tl.store(arrived, 0)
