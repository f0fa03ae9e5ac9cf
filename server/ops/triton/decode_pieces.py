"""Pieces of contexts, to each of which a program of its own attends: how long they are, stored and merged."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def piece_of(length, most, unit):
    """(tokens of a piece, how many pieces there are) of `length` tokens: `most` at most, of whole units."""
    piece = tl.maximum(tl.cdiv(tl.cdiv(length, most), unit), 1) * unit
    return piece, tl.maximum(tl.cdiv(length, piece), 1)


@triton.jit
def store_piece(
    acc, scale, partial, scales, pair, count, slot, present,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Write down a piece where it is `present`.

    Args:
        acc, scale: of the heads of `count` decodes that follow each other, GROUP heads each.
        pair: the first of them with its key head: ``decode · KV_HEADS + key head``.
        slot: which of the SLOTS pieces of each.
    """
    row, d = tl.arange(0, acc.shape[0]), tl.arange(0, acc.shape[1])
    place = ((pair + row // GROUP * KV_HEADS) * GROUP + row % GROUP) * SLOTS + slot
    mask = (row < count * GROUP) & present
    at = partial + place[:, None] * HEAD_DIM + d[None, :]
    tl.store(at, acc, mask=mask[:, None] & (d < HEAD_DIM)[None, :])
    tl.store(scales + place, scale, mask=mask)


@triton.jit
def merge_pieces(
    partial, scales, output, pair, live,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr, SLOTS: tl.constexpr,
    HEADS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write what the heads of a pair of decode and key head attended to, from their `live` pieces."""
    line = pair * GROUP + tl.minimum(tl.arange(0, HEADS), GROUP - 1)
    d = tl.arange(0, DIM_TILE)
    best = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    acc = tl.zeros([HEADS, DIM_TILE], tl.float32)
    for s0 in range(0, live, TILE):
        s = s0 + tl.arange(0, TILE)
        piece = line[:, None] * SLOTS + s[None, :]
        mask = (s < live)[None, :]
        # past the first-level cache, which knows nothing of other multiprocessors' stores
        scale = tl.load(scales + piece, mask=mask, other=float("-inf"), cache_modifier=".cg")
        at = partial + piece[:, :, None] * HEAD_DIM + d[None, None, :]
        mask = mask[:, :, None] & (d < HEAD_DIM)[None, None, :]
        part = tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
        peak = tl.maximum(best, tl.max(scale, 1))
        weights = tl.exp2(scale - peak[:, None])
        fade = tl.exp2(best - peak)
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None] + tl.sum(part * weights[:, :, None], 1)
        best = peak
    at = output + line[:, None] * HEAD_DIM + d[None, :]
    merged = (acc / total[:, None]).to(output.dtype.element_ty)
    tl.store(at, merged, mask=(d < HEAD_DIM)[None, :])


@triton.jit
def hand_in(
    acc, scale, partial, scales, arrivals, output, pair, split, live,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr,
    SPLITS: tl.constexpr, SLOTS: tl.constexpr, MERGE_HEADS: tl.constexpr, MERGE_TILE: tl.constexpr,
):  # fmt: skip
    """Write down a piece of a pair of decode and key head; the last of its `live` pieces merges them."""
    if SPLITS == 1:  # noqa: SIM114 (decided when compiled; the next one at run time)
        _write_whole(acc, output, pair, GROUP, HEAD_DIM)
    elif live == 1:
        _write_whole(acc, output, pair, GROUP, HEAD_DIM)
    else:
        store_piece(acc, scale, partial, scales, pair, 1, split, True, GROUP, KV_HEADS, HEAD_DIM, SLOTS)
        tl.debug_barrier()  # every thread has stored before one of them says so
        if tl.atomic_add(arrivals + pair, 1, sem="acq_rel") == live - 1:
            merge_pieces(
                partial, scales, output, pair, live,
                GROUP, HEAD_DIM, DIM_TILE, SLOTS, MERGE_HEADS, MERGE_TILE,
            )  # fmt: skip
            tl.store(arrivals + pair, 0)


@triton.jit
def _write_whole(acc, output, pair, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Write what the heads of a pair attended to, whose context is one piece."""
    row, d = tl.arange(0, acc.shape[0]), tl.arange(0, acc.shape[1])
    at = output + (pair * GROUP + row)[:, None] * HEAD_DIM + d[None, :]
    mask = (row < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    tl.store(at, acc.to(output.dtype.element_ty), mask=mask)
