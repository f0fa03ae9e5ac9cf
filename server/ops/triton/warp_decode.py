"""Paged attention for decodes: as `decode_kernel`, but each warp has tokens of its own.

In `decode_kernel` the warps of a program share a tile: through shared memory they find the greatest score and
exchange weights, and wait for each other at every step. Here the tokens of a tile are dealt out to the warps
(the first dimension of each product), each warp keeps a softmax of its own, and they meet once, at the end of
a piece. The blocks of a tile are looked up a tile ahead, so that the compiler can ask for keys and values as
many tiles ahead as it has buffers for.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import fetch_ahead
from server.ops.triton.decode_kernel import add_sink, blocks_of, cap_scores
from server.ops.triton.decode_pieces import hand_in, piece_of, store_piece
from server.ops.triton.decode_tokens import angles_of, take_queries, take_token
from server.ops.triton.float8_cache import scales_of, to_multiply, unpack_pairs
from server.ops.triton.shared_prefixes import SLOTS, leader_of, merge_sharers, piece_of_prefix, prefix_of


@triton.jit
def weigh(q, k, valid, best, total, scale, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):
    """(best, total, weights, fade) of each warp's softmax after some tokens more.

    Args:
        q: [warps, queries, head_dim].
        k: [warps, tokens, head_dim], float8 or of the queries' type.
        valid: [warps, tokens].
        best, total: [warps, queries].

    Returns:
        `weights` of the new tokens, [warps, queries, tokens], and by how much those before fade,
        [warps, queries, 1].
    """
    k = tl.permute(k.to(q.dtype), (0, 2, 1))
    scores = cap_scores(tl.dot(q, k, input_precision=PRECISION) * scale, SOFTCAP)
    scores = tl.where(valid[:, None, :], scores, float("-inf"))
    peak = tl.maximum(best, tl.max(scores, 2))
    weights = tl.exp2(scores - peak[:, :, None])
    fade = tl.exp2(best - peak)
    total = total * fade + tl.sum(weights, 2)
    return peak, total, weights.to(q.dtype), fade[:, :, None]


@triton.jit
def attend_piece(
    q, base, cache_scales, table, block, begin, end, block_stride, value_offset, scale,
    BLOCK_SIZE: tl.constexpr, TOKEN: tl.constexpr, HEAD_DIM: tl.constexpr, SOFTCAP: tl.constexpr,
    TILE: tl.constexpr, WARPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(best, total, acc) of the softmax over the tokens from `begin` to `end`, of all warps.

    Args:
        q: [queries, head_dim].
        cache_scales: None where the cache is not in FP8.
        block: those of the first tile, by `blocks_of`.
    """
    QUERIES: tl.constexpr = q.shape[0]
    DIM_TILE: tl.constexpr = q.shape[1]
    # of a cache in FP8 even and odd numbers of values are summed apart
    WIDTH: tl.constexpr = DIM_TILE if cache_scales is None else DIM_TILE // 2
    d, pair = tl.arange(0, DIM_TILE), tl.arange(0, DIM_TILE // 2)
    place = tokens_of(TILE, WARPS)
    queries = tl.broadcast_to(q[None, :, :], (WARPS, QUERIES, DIM_TILE))
    # less than any score, and a number when taken from itself: a warp may have no token
    best = tl.full([WARPS, QUERIES], -1e30, tl.float32)
    total = tl.zeros([WARPS, QUERIES], tl.float32)
    acc = tl.zeros([WARPS, QUERIES, WIDTH], tl.float32)
    odd = acc
    for n0 in range(begin, end, TILE):
        n = n0 + place
        valid = n < end
        at = base + (block * block_stride + (n % BLOCK_SIZE) * TOKEN)
        block = blocks_of(table, n + TILE, end, BLOCK_SIZE)
        mask = valid[:, :, None] & (d < HEAD_DIM)[None, None, :]
        k = tl.load(at[:, :, None] + d[None, None, :], mask=mask, other=0.0)
        if cache_scales is None:
            v = tl.load((at + value_offset)[:, :, None] + d[None, None, :], mask=mask, other=0.0)
        else:
            # in pairs, because a product takes values across tokens: shared memory turns matrices of 16 bits
            # as it is read, but numbers of 8 bits would be read one by one
            pairs = (at + value_offset).to(tl.pointer_type(tl.int16), bitcast=True)
            mask = valid[:, :, None] & (pair < HEAD_DIM // 2)[None, None, :]
            v = tl.load(pairs[:, :, None] + pair[None, None, :], mask=mask, other=0)
        best, total, weights, fade = weigh(queries, k, valid, best, total, scale, SOFTCAP, PRECISION)
        if cache_scales is not None:
            v, v_odd = unpack_pairs(v, q.dtype)
        acc = tl.dot(weights, v, acc * fade, input_precision=PRECISION)
        if cache_scales is not None:
            odd = tl.dot(weights, v_odd, odd * fade, input_precision=PRECISION)
    peak = tl.max(best, 0)
    share = tl.exp2(best - peak[None, :])
    acc = tl.sum(acc * share[:, :, None], 0)
    if cache_scales is not None:
        acc = tl.interleave(acc, tl.sum(odd * share[:, :, None], 0))
    return peak, tl.sum(total * share, 0), acc


@triton.jit
def tokens_of(TILE: tl.constexpr, WARPS: tl.constexpr):
    """[warps, tokens]: the places within a tile of each warp's tokens."""
    SHARE: tl.constexpr = TILE // WARPS
    return tl.arange(0, WARPS)[:, None] * SHARE + tl.arange(0, SHARE)[None, :]


@triton.jit
def add_token(q, k, v, present, best, total, acc, scale, SOFTCAP: tl.constexpr):
    """(best, total, acc) of the online softmax after one key and value more, where they are `present`."""
    score = cap_scores(tl.sum(q.to(tl.float32) * k.to(tl.float32)[None, :], 1) * scale, SOFTCAP)
    score = tl.where(present, score, float("-inf"))
    peak = tl.maximum(best, score)
    fade, weight = tl.exp2(best - peak), tl.exp2(score - peak)
    acc = acc * fade[:, None] + weight[:, None] * v.to(tl.float32)[None, :]
    return peak, total * fade + weight, acc


@triton.jit
def _hand_in(
    acc, scale_of_acc, query, query_stride, cos_table, sin_table, positions, sharers, base, tables, rows,
    cache_scales, v_scale, partial, scales, arrivals, output,
    sequence, kv_head, split, live, prefix, sharing, table_stride, block_stride, value_offset, scale,
    GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROTARY_DIM: tl.constexpr, SOFTCAP: tl.constexpr,
    TILE: tl.constexpr, SPLITS: tl.constexpr, MERGE_HEADS: tl.constexpr, MERGE_TILE: tl.constexpr,
    WARPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """As that of `decode_kernel`."""
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
            table = tables + tl.load(rows + leader).to(tl.int64) * table_stride
            block = blocks_of(table, begin + tokens_of(TILE, WARPS), end, BLOCK_SIZE)
            best, total, of_prefix = attend_piece(
                to_multiply(q, cache_scales), base, cache_scales, table, block, begin, end,
                block_stride, value_offset, scale,
                BLOCK_SIZE, TOKEN, HEAD_DIM, SOFTCAP, TILE, WARPS, PRECISION,
            )  # fmt: skip
            store_piece(
                of_prefix * (v_scale / total)[:, None], best + tl.log2(total), partial, scales,
                leader * KV_HEADS + kv_head, count, slot, True, GROUP, KV_HEADS, HEAD_DIM, SLOTS * SPLITS,
            )  # fmt: skip
        merge_sharers(
            partial, scales, arrivals, output, positions, leader, count, kv_head, prefix, pieces,
            GROUP, KV_HEADS, HEAD_DIM, DIM_TILE, SPLITS, MERGE_HEADS,
        )  # fmt: skip


@triton.jit
def decode_by_warps(
    query, key, value, cos_table, sin_table, sinks, cache, cache_scales,
    rows, positions, tables, prefixes, sharers, partial, scales, arrivals, output,
    query_stride, key_stride, value_stride, table_stride, block_stride, layer_offset, value_offset, scale,
    GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROTARY_DIM: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    MERGE_HEADS: tl.constexpr, MERGE_TILE: tl.constexpr, WARPS: tl.constexpr, PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """As `decode_kernel.decode`; before it waits, it asks for its first tile to come to the L2 cache."""
    TOKEN: tl.constexpr = KV_HEADS * HEAD_DIM
    if PDL:
        gdc_launch_dependents()
    kv_head, split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions + sequence)
    row = tl.load(rows + sequence).to(tl.int64)
    prefix, sharing, unit = prefix_of(prefixes, sharers, sequence, TILE)
    start = prefix if WINDOW == 0 else tl.maximum(position - WINDOW + 1, 0)
    piece, live = piece_of(position - start, SPLITS, unit)
    begin = start + split * piece
    end = tl.minimum(begin + piece, position)
    table = tables + row * table_stride
    base = cache + layer_offset + kv_head * HEAD_DIM
    n = begin + tokens_of(TILE, WARPS)
    block = blocks_of(table, n, end, BLOCK_SIZE)
    cos, sin = angles_of(cos_table, sin_table, position, tl.arange(0, DIM_TILE), ROTARY_DIM)
    k_scale, v_scale = scales_of(cache_scales, kv_head, KV_HEADS)
    if PDL:
        at = base + (block * block_stride + (n % BLOCK_SIZE) * TOKEN)
        fetch_ahead(at, n < end)
        fetch_ahead(at + value_offset, n < end)
        gdc_wait()
    if (position < 0) | ((sharing == 1) & (split >= live)):
        return

    sequence = sequence.to(tl.int64)
    q, k_new, v_new = take_token(
        query + sequence * query_stride, key + sequence * key_stride, value + sequence * value_stride,
        cos, sin, base, table, kv_head, position, split == 0, k_scale, v_scale, cache_scales,
        block_stride, value_offset,
        GROUP, GROUP_TILE, HEAD_DIM, DIM_TILE, BLOCK_SIZE, TOKEN, ROTARY_DIM,
    )  # fmt: skip
    scale *= k_scale
    best, total, acc = attend_piece(
        q, base, cache_scales, table, block, begin, end, block_stride, value_offset, scale,
        BLOCK_SIZE, TOKEN, HEAD_DIM, SOFTCAP, TILE, WARPS, PRECISION,
    )  # fmt: skip
    best, total, acc = add_token(q, k_new, v_new, split == 0, best, total, acc, scale, SOFTCAP)
    best, total, acc = add_sink(sinks, kv_head, split == 0, best, total, acc, GROUP, GROUP_TILE)
    acc, best = acc * (v_scale / total)[:, None], best + tl.log2(total)
    _hand_in(
        acc, best, query, query_stride, cos_table, sin_table, positions, sharers, base, tables, rows,
        cache_scales, v_scale, partial, scales, arrivals, output,
        sequence, kv_head, split, live, prefix, sharing, table_stride, block_stride, value_offset, scale,
        GROUP, GROUP_TILE, KV_HEADS, HEAD_DIM, DIM_TILE, BLOCK_SIZE, ROTARY_DIM, SOFTCAP,
        TILE, SPLITS, MERGE_HEADS, MERGE_TILE, WARPS, PRECISION,
    )  # fmt: skip
