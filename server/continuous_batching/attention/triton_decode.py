"""Paged attention for decodes: one new token a sequence, the context split over many programs.

Split-K decoding (Flash-Decoding; Dao et al., 2023): each program attends to a piece of one
sequence's context for all query heads that share a key head, so that keys and values are read once;
a second kernel merges the pieces by their log-sum-exp.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.continuous_batching.attention.paged import PagedBatch
from server.continuous_batching.kernels.triton_support import launch_options, next_power_of_two

LOG2_E = 1.4426950408889634
_MAX_SPLITS = 64
_PROGRAMS = 2048
"""As many fill a data-centre GPU evenly, also where contexts are of unequal length."""


@triton.jit
def load_tile(
    base, table, n, valid, d, block_stride, value_offset,
    BLOCK_SIZE: tl.constexpr, TOKEN: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Keys and values of the tokens `n`, TOKEN elements of the cache apart within a block."""
    block = tl.load(table + n // BLOCK_SIZE, mask=valid, other=0).to(tl.int64)
    at = base + (block * block_stride + (n % BLOCK_SIZE) * TOKEN)[:, None] + d[None, :]
    mask = valid[:, None] & (d < HEAD_DIM)[None, :]
    return tl.load(at, mask=mask, other=0.0), tl.load(at + value_offset, mask=mask, other=0.0)


@triton.jit
def attend_tile(q, k, v, valid, best, total, acc, scale, PRECISION: tl.constexpr):
    """(best, total, acc) of the online softmax after a tile of keys and values more."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    scores = tl.where(valid[None, :], scores, float("-inf"))
    peak = tl.maximum(best, tl.max(scores, 1))
    weights = tl.exp2(scores - peak[:, None])
    fade = tl.exp2(best - peak)
    total = total * fade + tl.sum(weights, 1)
    acc = acc * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return peak, total, acc


@triton.jit
def _decode_piece(
    query, cache, rows, positions, tables, partial, scales,
    query_stride, table_stride, block_stride, layer_offset, value_offset, scale,
    GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (sequence, key head, piece)."""
    TOKEN: tl.constexpr = KV_HEADS * HEAD_DIM
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(positions + sequence) + 1
    piece = tl.cdiv(tl.cdiv(length, SPLITS), TILE) * TILE
    begin = split * piece
    end = tl.minimum(begin + piece, length)
    g = tl.arange(0, GROUP_TILE)
    d = tl.arange(0, DIM_TILE)
    head = kv_head * GROUP + g
    # partial results: [sequences, heads, splits, head_dim], and their log2-sum-exp2 in `scales`
    out = (sequence.to(tl.int64) * (KV_HEADS * GROUP) + head) * SPLITS + split
    if begin >= end:
        tl.store(scales + out, float("-inf"), mask=g < GROUP)
        return
    d_valid = d < HEAD_DIM
    q_mask = (g < GROUP)[:, None] & d_valid[None, :]
    q = tl.load(query + sequence.to(tl.int64) * query_stride + head[:, None] * HEAD_DIM + d[None, :],
                mask=q_mask, other=0.0)  # fmt: skip
    table = tables + tl.load(rows + sequence).to(tl.int64) * table_stride
    base = cache + layer_offset + kv_head * HEAD_DIM
    best = tl.full([GROUP_TILE], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_TILE], tl.float32)
    acc = tl.zeros([GROUP_TILE, DIM_TILE], tl.float32)
    for n0 in range(begin, end, TILE):
        n = n0 + tl.arange(0, TILE)
        valid = n < end
        k, v = load_tile(base, table, n, valid, d, block_stride, value_offset, BLOCK_SIZE, TOKEN, HEAD_DIM)
        best, total, acc = attend_tile(q, k, v, valid, best, total, acc, scale, PRECISION)
    acc = acc / total[:, None]
    at = partial + out[:, None] * HEAD_DIM + d[None, :]
    tl.store(at, acc.to(partial.dtype.element_ty), mask=q_mask)
    tl.store(scales + out, best + tl.log2(total), mask=g < GROUP)


@triton.jit
def _merge_pieces(
    partial, scales, output,
    HEADS: tl.constexpr, HEAD_TILE: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr,
    SPLITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (sequence, tile of heads)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    head = tl.program_id(1) * HEAD_TILE + tl.arange(0, HEAD_TILE)
    line = tl.program_id(0).to(tl.int64) * HEADS + head
    s = tl.arange(0, SPLITS)
    d = tl.arange(0, DIM_TILE)
    piece = line[:, None] * SPLITS + s[None, :]
    scale = tl.load(scales + piece, mask=(head < HEADS)[:, None], other=0.0)
    weight = tl.exp2(scale - tl.max(scale, 1)[:, None])
    valid = (weight > 0.0) & (head < HEADS)[:, None]  # pieces that are empty were not written
    at = partial + piece[:, :, None] * HEAD_DIM + d[None, None, :]
    part = tl.load(at, mask=valid[:, :, None] & (d < HEAD_DIM)[None, None, :], other=0.0)
    merged = tl.sum(part * weight[:, :, None], 1) / tl.sum(weight, 1)[:, None]
    at = output + line[:, None] * HEAD_DIM + d[None, :]
    tl.store(at, merged.to(output.dtype.element_ty), mask=(head < HEADS)[:, None] & (d < HEAD_DIM)[None, :])


def num_splits(pairs: int, programs: int, max_length: int, tile: int) -> int:
    """Pieces of each context, a power of two.

    Args:
        pairs: of sequence and key head.
        programs: about as many shall run.
        max_length: tokens of the longest context that there may be.
        tile: tokens that a program reads at a time.
    """
    wanted = next_power_of_two(-(-programs // pairs))
    return min(wanted, _MAX_SPLITS, next_power_of_two(-(-max_length // tile)))


def decode_attention(query: Tensor, cache: Tensor, layer: int, batch: PagedBatch, output: Tensor) -> None:
    """Attend for the decodes of a step.

    Args:
        query: [decodes, heads, head_dim], rotated.
        cache: [blocks, layers, 2, block_size, kv_heads, head_dim]; holds the new tokens too.
        output: [decodes, heads, head_dim], contiguous; filled.
    """
    sequences, heads, head_dim = query.shape
    kv_heads, block_size = cache.shape[4], cache.shape[3]
    wide = query.dtype == torch.float32
    tile = 32 if wide or sequences * kv_heads <= 16 else 64
    splits = num_splits(sequences * kv_heads, _PROGRAMS, batch.tables.shape[1] * block_size, tile)
    scales = torch.empty((sequences, heads, splits), dtype=torch.float32, device=query.device)
    partial = output
    if splits > 1:
        shape = (sequences, heads, splits, head_dim)
        partial = torch.empty(shape, dtype=torch.float32, device=query.device)
    dim_tile = next_power_of_two(head_dim)
    options = launch_options(cache.device)
    group = heads // kv_heads
    _decode_piece[(sequences, kv_heads, splits)](
        query, cache, batch.rows, batch.positions, batch.tables, partial, scales,
        query.stride(0), batch.tables.stride(0), cache.stride(0), layer * cache.stride(1),
        cache.stride(2), head_dim**-0.5 * LOG2_E,
        GROUP=group, GROUP_TILE=max(next_power_of_two(group), 16), KV_HEADS=kv_heads,
        HEAD_DIM=head_dim, DIM_TILE=dim_tile, BLOCK_SIZE=block_size, TILE=tile, SPLITS=splits,
        PRECISION="ieee", num_warps=4, num_stages=2 if wide else 3, **options,
    )  # fmt: skip
    if splits > 1:
        head_tile = max(min(next_power_of_two(heads), 4096 // (splits * dim_tile)), 1)
        _merge_pieces[(sequences, -(-heads // head_tile))](
            partial, scales, output,
            HEADS=heads, HEAD_TILE=head_tile, HEAD_DIM=head_dim, DIM_TILE=dim_tile, SPLITS=splits,
            num_warps=4, **options,
        )  # fmt: skip
