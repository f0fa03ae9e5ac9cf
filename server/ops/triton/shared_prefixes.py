"""Attention to what several decodes begin with: read once for as many as a tile of queries has room for.

`ops.paged_attention.SharedPrefixes` says which these are. A program attends to a piece of what its own
context has behind the prefix, and to a piece of the prefix for all that share it. Whichever of their programs
ends last merges the pieces of all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from server.ops.triton.decode_pieces import merge_pieces, piece_of, store_output, store_piece

_HELPERS = tl.constexpr(4)
"""Decodes whose programs divide a prefix among them, at most."""
_SMALLEST = tl.constexpr(128)
"""Tokens of a piece of a prefix, at least: of smaller ones there is more to merge than to read."""
SLOTS = tl.constexpr(5)
"""Pieces that a decode may be merged from, for each that its own context is split into."""


@triton.jit
def prefix_of(prefixes, sharers, decode):
    """(tokens of a decode's prefix, what `SharedPrefixes.sharers` says of it); it is alone where nothing is
    shared at all (`sharers` is None)."""
    prefix, sharing = 0, 1
    if sharers is not None:
        prefix, sharing = tl.load(prefixes + decode), tl.load(sharers + decode)
    return prefix, sharing


@triton.jit
def leader_of(sharers, decode, sharing):
    """(the leader of a decode, how many share its prefix); of one alone itself and 1."""
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
    programs = tl.minimum(count, _HELPERS) * SPLITS
    piece = tl.maximum(tl.cdiv(prefix, programs * _SMALLEST), 1) * _SMALLEST
    index = place * SPLITS + split
    begin = tl.minimum(index * piece, prefix)
    return begin, tl.minimum(begin + piece, prefix), index, tl.cdiv(prefix, piece)


@triton.jit
def store_own(
    acc, scale, partial, scales, output, pair, slot, sharing, present,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Write down a piece of a decode's own context where it is `present`; the output, if it is all."""
    if (SPLITS == 1) & (sharing == 1):
        store_output(acc, output, pair, GROUP, HEAD_DIM)
    else:
        store_piece(
            acc, scale, partial, scales, pair, 1, slot, present, GROUP, KV_HEADS, HEAD_DIM, SLOTS * SPLITS
        )  # fmt: skip


@triton.jit
def merge_sharers(
    partial, scales, arrivals, output, positions, leader, count, kv_head, prefix, pieces, live,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr,
    SPLITS: tl.constexpr, TILE: tl.constexpr, MERGE_HEADS: tl.constexpr, MERGE_TILE: tl.constexpr,
):  # fmt: skip
    """Merge the pieces of all that share a prefix, or of one alone, in the last of their programs.

    Args:
        pieces: of the prefix.
        live: of the own context of one that is alone.
    """
    if (SPLITS > 1) | (count > 1):
        awaited = tl.where(count > 1, count * SPLITS, live)
        arrived = arrivals + leader * KV_HEADS + kv_head
        tl.debug_barrier()  # every thread has stored before one of them says so
        if tl.atomic_add(arrived, 1, sem="acq_rel") == awaited - 1:
            for each in range(leader, leader + count):
                _, own = piece_of(tl.load(positions + each) - prefix, SPLITS, TILE)
                merge_pieces(
                    partial, scales, output, each * KV_HEADS + kv_head, pieces + own,
                    GROUP, HEAD_DIM, DIM_TILE, SLOTS * SPLITS, MERGE_HEADS, MERGE_TILE,
                )  # fmt: skip
            tl.store(arrived, 0)
