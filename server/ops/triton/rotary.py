"""One kernel between projection and attention of chunks: rotate queries and keys, store keys and values."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options, next_power_of_two
from server.layers.rotary import Rotary
from server.ops.paged_attention import PagedBatch
from server.ops.triton.float8_cache import as_stored, scales_of


@triton.jit
def _rotated(base, heads, d, cos, sin, mask, HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr):
    """Both halves of the first ROTARY_DIM numbers of `heads`, rotated, in float32; they make the pairs."""
    at = base + heads[:, None] * HEAD_DIM + d[None, :]
    first = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(at + ROTARY_DIM // 2, mask=mask, other=0.0).to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _keep(at, x, scale, cache_scales, dtype: tl.constexpr, mask):
    """Store keys or values, rounded to `dtype`, that of what was projected, before they become FP8."""
    tl.store(at, as_stored(x.to(dtype), scale, cache_scales), mask=mask)


@triton.jit(do_not_specialize=["begin"])
def _rotate_and_store(
    query, key, value, cos_table, sin_table, cache, cache_scales, rows, positions, tables,
    query_stride, key_stride, value_stride, table_stride, block_stride, layer_offset, value_offset, begin,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr,
    ROTARY_DIM: tl.constexpr, ROTARY_HALF: tl.constexpr, REST: tl.constexpr,
    HEAD_TILE: tl.constexpr, KV_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (token, t): a tile of query heads, or for the last t all key and value heads.

    HALF, ROTARY_HALF and REST are powers of two that hold half a head, half of what is rotated of it, and
    what is not. Tokens count from `begin`, of which each alignment would have to be compiled by itself
    while serving.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    token, tile = begin + tl.program_id(0), tl.program_id(1)
    position = tl.load(positions + token)
    if position < 0:
        return
    d = tl.arange(0, ROTARY_HALF)
    valid = d < ROTARY_DIM // 2
    cos = tl.load(cos_table + position * ROTARY_DIM + d, mask=valid, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_table + position * ROTARY_DIM + d, mask=valid, other=0.0).to(tl.float32)[None, :]
    token = token.to(tl.int64)
    if tile * HEAD_TILE < HEADS:
        heads = tile * HEAD_TILE + tl.arange(0, HEAD_TILE)
        mask = (heads < HEADS)[:, None] & valid[None, :]
        base = query + token * query_stride
        first, second = _rotated(base, heads, d, cos, sin, mask, HEAD_DIM, ROTARY_DIM)
        at = base + heads[:, None] * HEAD_DIM + d[None, :]
        tl.store(at, first.to(query.dtype.element_ty), mask=mask)
        tl.store(at + ROTARY_DIM // 2, second.to(query.dtype.element_ty), mask=mask)
        return
    heads = tl.arange(0, KV_TILE)
    present = (heads < KV_HEADS)[:, None]
    mask = present & valid[None, :]
    row = tl.load(rows + token).to(tl.int64)
    block = tl.load(tables + row * table_stride + position // BLOCK_SIZE).to(tl.int64)
    slot = cache + block * block_stride + layer_offset + (position % BLOCK_SIZE) * (KV_HEADS * HEAD_DIM)
    slot += heads[:, None] * HEAD_DIM
    at = slot + d[None, :]
    first, second = _rotated(key + token * key_stride, heads, d, cos, sin, mask, HEAD_DIM, ROTARY_DIM)
    dtype: tl.constexpr = key.dtype.element_ty
    k_scale, v_scale = scales_of(cache_scales, heads[:, None], KV_HEADS)
    _keep(at, first, k_scale, cache_scales, dtype, mask)
    _keep(at + ROTARY_DIM // 2, second, k_scale, cache_scales, dtype, mask)
    if ROTARY_DIM < HEAD_DIM:
        d = ROTARY_DIM + tl.arange(0, REST)
        mask = present & (d < HEAD_DIM)[None, :]
        source = key + token * key_stride + heads[:, None] * HEAD_DIM + d[None, :]
        _keep(slot + d[None, :], tl.load(source, mask=mask), k_scale, cache_scales, dtype, mask)
    d = tl.arange(0, HALF)
    mask = present & (d < HEAD_DIM // 2)[None, :]
    source = value + token * value_stride + heads[:, None] * HEAD_DIM + d[None, :]
    at = slot + value_offset + d[None, :]
    _keep(at, tl.load(source, mask=mask), v_scale, cache_scales, dtype, mask)
    _keep(at + HEAD_DIM // 2, tl.load(source + HEAD_DIM // 2, mask=mask), v_scale, cache_scales, dtype, mask)


def rotate_and_store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotary: Rotary | None,
    cache: Tensor,
    layer: int,
    batch: PagedBatch,
    cache_scales: Tensor | None = None,
    *,
    fused: bool = True,
    turns: bool = True,
) -> None:
    """Rotate the chunks' queries in place; write their rotated keys and values to their places in `cache`.

    Args:
        query: [tokens, heads, head_dim], rows may be apart (a slice of a joint projection).
        key, value: [tokens, kv_heads, head_dim], likewise.
        rotary: cosines and sines; None: nothing is rotated.
        cache: [blocks, layers, 2, block_size, kv_heads, head_dim].
        cache_scales: of a cache in FP8, as in `AttentionShape`.
        fused: a product and a sum may be rounded as one, which is the compiler's choice.
        turns: rotate the queries; False: they stay as they are.
    """
    tokens, heads, head_dim = query.shape
    kv_heads, first = key.shape[1], batch.num_decodes
    cos, sin, size, turned = query, query, 0, 0  # tables that are not read; no query head turns
    if rotary is not None:
        cos, sin, size, turned = rotary.cos, rotary.sin, rotary.cos.shape[1], heads if turns else 0
    head_tile = min(next_power_of_two(heads), 8 if tokens - first <= 64 or not turns else 32)
    grid = (tokens - first, -(-turned // head_tile) + 1)
    _rotate_and_store[grid](
        query, key, value, cos, sin, cache, None if cache_scales is None else cache_scales[layer],
        batch.rows, batch.positions, batch.tables,
        query.stride(0), key.stride(0), value.stride(0), batch.tables.stride(0),
        cache.stride(0), layer * cache.stride(1), cache.stride(2), first,
        HEADS=turned, KV_HEADS=kv_heads, HEAD_DIM=head_dim, HALF=next_power_of_two(head_dim // 2),
        ROTARY_DIM=size, ROTARY_HALF=next_power_of_two(max(size // 2, 1)),
        REST=next_power_of_two(max(head_dim - size, 1)),
        HEAD_TILE=head_tile, KV_TILE=next_power_of_two(kv_heads), BLOCK_SIZE=cache.shape[3],
        num_warps=4, enable_fp_fusion=fused, **launch_options(cache.device),
    )  # fmt: skip
