"""Paged causal attention for chunks of prompts: many query tokens of each of several sequences.

FlashAttention's online softmax (Dao, 2023) with keys and values gathered through block tables.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import LOG2_E, gpu_of, launch_options, next_power_of_two
from server.layers.spec import AttentionSpec
from server.ops.paged_attention import QUERY_TILE, PagedBatch
from server.ops.triton.decode_kernel import blocks_of, cap_scores
from server.ops.triton.float8_cache import scales_of, to_multiply


@triton.jit
def _attend_keys(
    acc, total, best, q, query_position, lowest, begin, end, table, base,
    block_stride, value_offset, scale,
    TOKEN_STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    TILE: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take keys `begin` to `end` into the running softmax; MASKED: some queries do not see some of them.

    Keys before `lowest` are seen by none, and not read. Blocks are looked up a tile ahead (`decode_kernel`).
    """
    d = tl.arange(0, DIM_TILE)
    block = blocks_of(table, begin + tl.arange(0, TILE), end, BLOCK_SIZE)
    for n0 in range(begin, end, TILE):
        n = n0 + tl.arange(0, TILE)
        at = base + (block * block_stride + (n % BLOCK_SIZE) * TOKEN_STRIDE)[:, None] + d[None, :]
        block = blocks_of(table, n + TILE, end, BLOCK_SIZE)
        if MASKED:
            mask = ((n >= lowest) & (n < end))[:, None] & (d < HEAD_DIM)[None, :]
            k = tl.load(at, mask=mask, other=0.0)
            v = tl.load(at + value_offset, mask=mask, other=0.0)
        elif DIM_TILE != HEAD_DIM:
            k = tl.load(at, mask=(d < HEAD_DIM)[None, :], other=0.0)
            v = tl.load(at + value_offset, mask=(d < HEAD_DIM)[None, :], other=0.0)
        else:
            k = tl.load(at)
            v = tl.load(at + value_offset)
        k, v = k.to(q.dtype), v.to(q.dtype)  # of a cache in FP8
        scores = cap_scores(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale, SOFTCAP)
        if MASKED:
            seen = n[None, :] <= query_position[:, None]
            if WINDOW > 0:
                seen = seen & (n[None, :] > query_position[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        peak = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp2(scores - peak[:, None])
        fade = tl.exp2(best - peak)
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None]
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
        best = peak
    return acc, total, best


@triton.jit
def _attend_chunk(
    query, cache, cache_scales, output, sinks, rows, positions, tables, tiles,
    query_stride, output_stride, table_stride, block_stride, layer_offset, value_offset, scale,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, QUERIES: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (head, piece of a chunk).

    WINDOW, if not 0, is how many tokens each sees at most: what lies before all windows is not read. Tiles
    of keys begin at multiples of TILE, so that a query adds up the same wherever its chunk begins.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    head = tl.program_id(0)
    piece = tiles + 2 * tl.program_id(1)
    first, chunk_end = tl.load(piece), tl.load(piece + 1)
    position = tl.load(positions + first)
    table = tables + tl.load(rows + first).to(tl.int64) * table_stride
    m, d = tl.arange(0, QUERIES), tl.arange(0, DIM_TILE)
    token = (first + m).to(tl.int64)
    mask = (token < chunk_end)[:, None] & (d < HEAD_DIM)[None, :]
    at = head * HEAD_DIM + d[None, :]
    q = to_multiply(tl.load(query + token[:, None] * query_stride + at, mask=mask, other=0.0), cache_scales)
    base = cache + layer_offset + (head // GROUP) * HEAD_DIM
    k_scale, v_scale = scales_of(cache_scales, head // GROUP, KV_HEADS)
    scale *= k_scale
    # less than any score, and a number when taken from itself: queries may see no key of the first tiles
    best = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    if sinks is not None:  # the score of a token without a value
        best = tl.zeros([QUERIES], tl.float32) + tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        total += 1.0
    acc = tl.zeros([QUERIES, DIM_TILE], tl.float32)
    last = position + tl.minimum(QUERIES, chunk_end - first)
    place = tl.minimum(position + m, last - 1)  # of each query; those past the end see what the last one does
    before = position // TILE * TILE  # keys that every query of the piece attends to, but for windows
    if WINDOW == 0:
        inside = 0
        lowest = 0
    else:
        lowest = tl.maximum(position - WINDOW + 1, 0)  # of the first query's window
        latest = tl.maximum(last - WINDOW, 0)  # of the last one's
        inside = tl.minimum(tl.cdiv(latest, TILE) * TILE, before)
        acc, total, best = _attend_keys(
            acc, total, best, q, place, lowest, lowest // TILE * TILE, inside, table, base,
            block_stride, value_offset, scale,
            KV_HEADS * HEAD_DIM, HEAD_DIM, DIM_TILE, BLOCK_SIZE, WINDOW, SOFTCAP, TILE, True, PRECISION,
        )  # fmt: skip
    acc, total, best = _attend_keys(
        acc, total, best, q, place, lowest, inside, before, table, base, block_stride, value_offset, scale,
        KV_HEADS * HEAD_DIM, HEAD_DIM, DIM_TILE, BLOCK_SIZE, WINDOW, SOFTCAP, TILE, False, PRECISION,
    )  # fmt: skip
    acc, total, best = _attend_keys(
        acc, total, best, q, place, lowest, before, last, table, base, block_stride, value_offset, scale,
        KV_HEADS * HEAD_DIM, HEAD_DIM, DIM_TILE, BLOCK_SIZE, WINDOW, SOFTCAP, TILE, True, PRECISION,
    )  # fmt: skip
    acc = acc / total[:, None] * v_scale
    tl.store(output + token[:, None] * output_stride + at, acc.to(output.dtype.element_ty), mask=mask)


def chunk_attention(
    query: Tensor,
    cache: Tensor,
    layer: int,
    spec: AttentionSpec,
    batch: PagedBatch,
    output: Tensor,
    sinks: Tensor | None = None,
    cache_scales: Tensor | None = None,
    *,
    fused: bool = True,
) -> None:
    """Attend for the chunks of a step.

    Args:
        query: [tokens, heads, head_dim], rotated; all tokens of the step.
        cache: [blocks, layers, 2, block_size, kv_heads, head_dim]; holds the chunks' tokens too.
        layer: of the cache.
        spec: how it attends.
        output: [tokens, heads, head_dim]; the chunks' rows are filled.
        sinks: [heads], where the layer has them.
        cache_scales: of a cache in FP8, as in `AttentionShape`.
        fused: a product and a sum may be rounded as one, which the compiler does in some tiles only.
    """
    assert batch.chunks is not None
    heads, head_dim = query.shape[1:]
    wide, dim_tile = query.dtype == torch.float32, next_power_of_two(head_dim)
    tile = 32 if wide else 64
    room = gpu_of(cache.device).shared - QUERY_TILE * dim_tile * query.element_size()
    buffers = room // (2 * tile * dim_tile * cache.element_size())  # of a tile of keys and one of values
    _attend_chunk[(heads, len(batch.chunks.tiles))](
        query, cache, None if cache_scales is None else cache_scales[layer], output, sinks,
        batch.rows, batch.positions, batch.tables, batch.chunks.tiles,
        query.stride(0), output.stride(0), batch.tables.stride(0), cache.stride(0),
        layer * cache.stride(1), cache.stride(2), spec.scale * LOG2_E,
        GROUP=heads // cache.shape[4], KV_HEADS=cache.shape[4], HEAD_DIM=head_dim,
        DIM_TILE=dim_tile, BLOCK_SIZE=cache.shape[3], WINDOW=spec.window or 0,
        SOFTCAP=(spec.softcap or 0.0) * LOG2_E, QUERIES=QUERY_TILE,
        TILE=tile, PRECISION="ieee", num_warps=8, num_stages=1 if wide else max(1, min(3, buffers)),
        enable_fp_fusion=fused, **launch_options(cache.device),
    )  # fmt: skip
