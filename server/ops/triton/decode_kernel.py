"""Paged attention for decodes: rotation, cache write, split-K attention and merge in one kernel.

Split-K decoding (Flash-Decoding; Dao et al., 2023): a program attends with the new token of a sequence
to a piece of its context, for all query heads that share a key head, so that keys and values are read once.
The program of a context that ends last merges the pieces by their log-sum-exp.

Where a step has few sequences, each launch costs as much as what it does. So the new token is rotated
here and attended to from registers, while the first program of its context stores it. Nothing is read
from the cache then that this step writes, and the first keys and values are asked for before the kernel
in front has ended.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.ops.triton.decode_pieces import hand_in, piece_of, store_piece
from server.ops.triton.decode_tokens import angles_of, take_queries, take_token
from server.ops.triton.shared_prefixes import SLOTS, leader_of, merge_sharers, piece_of_prefix, prefix_of


@triton.jit
def blocks_of(table, n, end, BLOCK_SIZE: tl.constexpr):
    """The blocks that hold the tokens `n`; those from `end` on have none."""
    return tl.load(table + n // BLOCK_SIZE, mask=n < end, other=0).to(tl.int64)


@triton.jit
def load_tile(
    base, block, n, valid, d, block_stride, value_offset,
    BLOCK_SIZE: tl.constexpr, TOKEN: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Keys and values of the tokens `n` in their blocks, TOKEN elements of the cache apart within one."""
    at = base + (block * block_stride + (n % BLOCK_SIZE) * TOKEN)[:, None] + d[None, :]
    mask = valid[:, None] & (d < HEAD_DIM)[None, :]
    return tl.load(at, mask=mask, other=0.0), tl.load(at + value_offset, mask=mask, other=0.0)


@triton.jit
def cap_scores(scores, SOFTCAP: tl.constexpr):
    """``SOFTCAP · tanh(scores / SOFTCAP)``; 0: as they are."""
    if SOFTCAP != 0.0:
        scores = SOFTCAP - 2.0 * SOFTCAP / (1.0 + tl.exp2(scores * (2.885390081777927 / SOFTCAP)))  # 2 / ln 2
    return scores


@triton.jit
def attend_tile(q, k, v, valid, best, total, acc, scale, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):
    """(best, total, acc) of the online softmax after a tile of keys and values more."""
    scores = cap_scores(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale, SOFTCAP)
    scores = tl.where(valid[None, :], scores, float("-inf"))
    peak = tl.maximum(best, tl.max(scores, 1))
    weights = tl.exp2(scores - peak[:, None])
    fade = tl.exp2(best - peak)
    total = total * fade + tl.sum(weights, 1)
    acc = acc * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return peak, total, acc


@triton.jit
def begin_with(q, k, v, present, scale, SOFTCAP: tl.constexpr):
    """(best, total, acc) of the online softmax after one key and value, or, where not `present`, none."""
    score = tl.sum(q.to(tl.float32) * k.to(tl.float32)[None, :], 1) * scale
    best = tl.where(present, cap_scores(score, SOFTCAP), float("-inf"))
    total = tl.zeros([q.shape[0]], tl.float32) + tl.where(present, 1.0, 0.0)
    acc = tl.zeros([q.shape[0], q.shape[1]], tl.float32) + v.to(tl.float32)[None, :]
    return best, total, acc


@triton.jit
def add_sink(
    sinks, kv_head, present, best, total, acc, GROUP: tl.constexpr, GROUP_TILE: tl.constexpr
):  # fmt: skip
    """(best, total, acc) with the sinks of a group of heads, scores that have no value, where `present`;
    else, or where there are no `sinks`, as they were."""
    if sinks is not None:
        g = tl.arange(0, GROUP_TILE)
        sink = tl.load(sinks + kv_head * GROUP + g, mask=g < GROUP, other=0.0).to(tl.float32)
        sink *= 1.4426950408889634  # 1 / ln 2
        peak = tl.where(present, tl.maximum(best, sink), 0.0)
        fade = tl.where(present, tl.exp2(best - peak), 1.0)
        total = total * fade + tl.where(present, tl.exp2(sink - peak), 0.0)
        best, acc = tl.where(present, peak, best), acc * fade[:, None]
    return best, total, acc


@triton.jit
def attend_tiles(
    q, base, table, block, begin, end, best, total, acc, block_stride, value_offset, scale,
    BLOCK_SIZE: tl.constexpr, TOKEN: tl.constexpr, HEAD_DIM: tl.constexpr, SOFTCAP: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(best, total, acc) of the online softmax after the tokens from `begin` to `end` more.

    Args:
        block: those of the first tile, by `blocks_of`.
    """
    d = tl.arange(0, q.shape[1])
    for n0 in range(begin, end, TILE):
        n = n0 + tl.arange(0, TILE)
        valid = n < end
        # blocks are looked up a tile ahead: keys and values are asked for as early as there are buffers
        k, v = load_tile(base, block, n, valid, d, block_stride, value_offset, BLOCK_SIZE, TOKEN, HEAD_DIM)
        block = blocks_of(table, n + TILE, end, BLOCK_SIZE)
        best, total, acc = attend_tile(q, k, v, valid, best, total, acc, scale, SOFTCAP, PRECISION)
    return best, total, acc


@triton.jit
def _hand_in(
    acc, scale_of_acc, query, query_stride, cos_table, sin_table, positions, sharers, base, tables, rows,
    partial, scales, arrivals, output, sequence, kv_head, split, live, prefix, sharing,
    table_stride, block_stride, value_offset, scale,
    GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROTARY_DIM: tl.constexpr, SOFTCAP: tl.constexpr,
    TILE: tl.constexpr, SPLITS: tl.constexpr, MERGE_HEADS: tl.constexpr, MERGE_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write down a piece of a decode's own context; attend to one of the prefix for all that share it."""
    pair = sequence * KV_HEADS + kv_head
    if sharers is None:
        hand_in(
            acc, scale_of_acc, partial, scales, arrivals, output, pair, split, live,
            GROUP, KV_HEADS, HEAD_DIM, DIM_TILE, SPLITS, SPLITS, MERGE_HEADS, MERGE_TILE,
        )  # fmt: skip
    elif sharing == 1:
        hand_in(
            acc, scale_of_acc, partial, scales, arrivals, output, pair, split, live,
            GROUP, KV_HEADS, HEAD_DIM, DIM_TILE, SPLITS, SLOTS * SPLITS, MERGE_HEADS, MERGE_TILE,
        )  # fmt: skip
    else:
        TOKEN: tl.constexpr = KV_HEADS * HEAD_DIM
        leader, count = leader_of(sharers, sequence, sharing)
        begin, end, slot, pieces = piece_of_prefix(prefix, sequence - leader, count, split, SPLITS)
        store_piece(
            acc, scale_of_acc, partial, scales, pair, 1, pieces + split, split < live,
            GROUP, KV_HEADS, HEAD_DIM, SLOTS * SPLITS,
        )  # fmt: skip
        if begin < end:
            q = take_queries(
                query, query_stride, cos_table, sin_table, positions, leader, count, kv_head,
                GROUP, GROUP_TILE, HEAD_DIM, DIM_TILE, ROTARY_DIM,
            )  # fmt: skip
            best = tl.full([GROUP_TILE], float("-inf"), tl.float32)
            total = tl.zeros([GROUP_TILE], tl.float32)
            of_prefix = tl.zeros([GROUP_TILE, DIM_TILE], tl.float32)
            table = tables + tl.load(rows + leader).to(tl.int64) * table_stride
            block = blocks_of(table, begin + tl.arange(0, TILE), end, BLOCK_SIZE)
            best, total, of_prefix = attend_tiles(
                q, base, table, block, begin, end, best, total, of_prefix, block_stride, value_offset, scale,
                BLOCK_SIZE, TOKEN, HEAD_DIM, SOFTCAP, TILE, PRECISION,
            )  # fmt: skip
            store_piece(
                of_prefix / total[:, None], best + tl.log2(total), partial, scales,
                leader * KV_HEADS + kv_head, count, slot, True, GROUP, KV_HEADS, HEAD_DIM, SLOTS * SPLITS,
            )  # fmt: skip
        merge_sharers(
            partial, scales, arrivals, output, positions, leader, count, kv_head, prefix, pieces,
            GROUP, KV_HEADS, HEAD_DIM, DIM_TILE, SPLITS, MERGE_HEADS,
        )  # fmt: skip


@triton.jit
def decode(
    query, key, value, cos_table, sin_table, sinks, cache, rows, positions, tables, prefixes, sharers,
    partial, scales, arrivals, output,
    query_stride, key_stride, value_stride, table_stride, block_stride, layer_offset, value_offset, scale,
    GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROTARY_DIM: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    MERGE_HEADS: tl.constexpr, MERGE_TILE: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (key head, piece, sequence); programs start in the order of the sequences.

    WINDOW, if not 0, is how many tokens the new one sees at most: the pieces are of those alone.
    Before it waits, it reads only what no kernel of the step writes once the tokens are embedded:
    places, tables, angles, and the cache up to the new token.
    """
    TOKEN: tl.constexpr = KV_HEADS * HEAD_DIM
    if PDL:
        gdc_launch_dependents()
    kv_head, split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions + sequence)
    prefix, sharing, unit = prefix_of(prefixes, sharers, sequence, TILE)
    start = prefix if WINDOW == 0 else tl.maximum(position - WINDOW + 1, 0)
    piece, live = piece_of(position - start, SPLITS, unit)
    begin = start + split * piece
    end = tl.minimum(begin + piece, position)
    d = tl.arange(0, DIM_TILE)
    table = tables + tl.load(rows + sequence).to(tl.int64) * table_stride
    base = cache + layer_offset + kv_head * HEAD_DIM
    n = begin + tl.arange(0, TILE)
    valid = n < end
    block = blocks_of(table, n, end, BLOCK_SIZE)
    k, v = load_tile(base, block, n, valid, d, block_stride, value_offset, BLOCK_SIZE, TOKEN, HEAD_DIM)
    block = blocks_of(table, n + TILE, end, BLOCK_SIZE)
    cos, sin = angles_of(cos_table, sin_table, position, d, ROTARY_DIM)
    if PDL:
        gdc_wait()
    if (position < 0) | ((sharing == 1) & (split >= live)):
        return

    sequence, first = sequence.to(tl.int64), split == 0
    q, k_new, v_new = take_token(
        query + sequence * query_stride, key + sequence * key_stride, value + sequence * value_stride,
        cos, sin, base, table, kv_head, position, first, 1.0, 1.0, None, block_stride, value_offset,
        GROUP, GROUP_TILE, HEAD_DIM, DIM_TILE, BLOCK_SIZE, TOKEN, ROTARY_DIM,
    )  # fmt: skip
    best, total, acc = begin_with(q, k_new, v_new, first, scale, SOFTCAP)
    best, total, acc = add_sink(sinks, kv_head, first, best, total, acc, GROUP, GROUP_TILE)
    best, total, acc = attend_tile(q, k, v, valid, best, total, acc, scale, SOFTCAP, PRECISION)
    best, total, acc = attend_tiles(
        q, base, table, block, begin + TILE, end, best, total, acc, block_stride, value_offset, scale,
        BLOCK_SIZE, TOKEN, HEAD_DIM, SOFTCAP, TILE, PRECISION,
    )  # fmt: skip
    acc, best = acc / total[:, None], best + tl.log2(total)
    _hand_in(
        acc, best, query, query_stride, cos_table, sin_table, positions, sharers, base, tables, rows,
        partial, scales, arrivals, output, sequence, kv_head, split, live, prefix, sharing,
        table_stride, block_stride, value_offset, scale,
        GROUP, GROUP_TILE, KV_HEADS, HEAD_DIM, DIM_TILE, BLOCK_SIZE, ROTARY_DIM, SOFTCAP,
        TILE, SPLITS, MERGE_HEADS, MERGE_TILE, PRECISION,
    )  # fmt: skip
