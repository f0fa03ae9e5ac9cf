"""One kernel between projection and attention of chunks: rotate queries and keys, store keys and values."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.continuous_batching.attention.paged import PagedBatch
from server.continuous_batching.kernels.triton_support import launch_options, next_power_of_two
from server.continuous_batching.layers.rotary import Rotary


@triton.jit
def _rotated(base, heads, d, cos, sin, mask, HEAD_DIM: tl.constexpr):
    """Both halves of `heads`, rotated, in float32; the pairs are the two halves of a head."""
    at = base + heads[:, None] * HEAD_DIM + d[None, :]
    first = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(at + HEAD_DIM // 2, mask=mask, other=0.0).to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit(do_not_specialize=["begin"])
def _rotate_and_store(
    query, key, value, cos_table, sin_table, cache, rows, positions, tables,
    query_stride, key_stride, value_stride, table_stride, block_stride, layer_offset, value_offset, begin,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr,
    HEAD_TILE: tl.constexpr, KV_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (token, t): a tile of query heads, or for the last t all key and value heads.

    Tokens count from `begin`, of which each alignment would have to be compiled by itself while serving.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    token, tile = begin + tl.program_id(0), tl.program_id(1)
    position = tl.load(positions + token)
    if position < 0:
        return
    d = tl.arange(0, HALF)
    half_valid = d < HEAD_DIM // 2
    cos = tl.load(cos_table + position * HEAD_DIM + d, mask=half_valid, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_table + position * HEAD_DIM + d, mask=half_valid, other=0.0).to(tl.float32)[None, :]
    token = token.to(tl.int64)
    if tile * HEAD_TILE < HEADS:
        heads = tile * HEAD_TILE + tl.arange(0, HEAD_TILE)
        mask = (heads < HEADS)[:, None] & half_valid[None, :]
        base = query + token * query_stride
        first, second = _rotated(base, heads, d, cos, sin, mask, HEAD_DIM)
        at = base + heads[:, None] * HEAD_DIM + d[None, :]
        tl.store(at, first.to(query.dtype.element_ty), mask=mask)
        tl.store(at + HEAD_DIM // 2, second.to(query.dtype.element_ty), mask=mask)
        return
    heads = tl.arange(0, KV_TILE)
    mask = (heads < KV_HEADS)[:, None] & half_valid[None, :]
    row = tl.load(rows + token).to(tl.int64)
    block = tl.load(tables + row * table_stride + position // BLOCK_SIZE).to(tl.int64)
    slot = cache + block * block_stride + layer_offset + (position % BLOCK_SIZE) * (KV_HEADS * HEAD_DIM)
    slot += heads[:, None] * HEAD_DIM + d[None, :]
    first, second = _rotated(key + token * key_stride, heads, d, cos, sin, mask, HEAD_DIM)
    tl.store(slot, first.to(cache.dtype.element_ty), mask=mask)
    tl.store(slot + HEAD_DIM // 2, second.to(cache.dtype.element_ty), mask=mask)
    at = value + token * value_stride + heads[:, None] * HEAD_DIM + d[None, :]
    tl.store(slot + value_offset, tl.load(at, mask=mask), mask=mask)
    tl.store(slot + value_offset + HEAD_DIM // 2, tl.load(at + HEAD_DIM // 2, mask=mask), mask=mask)


def rotate_and_store(
    query: Tensor, key: Tensor, value: Tensor, rotary: Rotary, cache: Tensor, layer: int, batch: PagedBatch
) -> None:
    """Rotate the chunks' queries in place; write their rotated keys and values to their places in `cache`.

    Args:
        query: [tokens, heads, head_dim], rows may be apart (a slice of a joint projection).
        key, value: [tokens, kv_heads, head_dim], likewise.
        rotary: cosines and sines.
        cache: [blocks, layers, 2, block_size, kv_heads, head_dim].
    """
    tokens, heads, head_dim = query.shape
    kv_heads, first = key.shape[1], batch.num_decodes
    head_tile = min(next_power_of_two(heads), 8 if tokens - first <= 64 else 32)
    grid = (tokens - first, -(-heads // head_tile) + 1)
    _rotate_and_store[grid](
        query, key, value, rotary.cos, rotary.sin, cache, batch.rows, batch.positions, batch.tables,
        query.stride(0), key.stride(0), value.stride(0), batch.tables.stride(0),
        cache.stride(0), layer * cache.stride(1), cache.stride(2), first,
        HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, HALF=next_power_of_two(head_dim // 2),
        HEAD_TILE=head_tile, KV_TILE=next_power_of_two(kv_heads), BLOCK_SIZE=cache.shape[3],
        num_warps=4, **launch_options(cache.device),
    )  # fmt: skip
