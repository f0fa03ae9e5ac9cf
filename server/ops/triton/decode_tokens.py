"""Keys, values and queries of a step's new tokens, rotated as they are read."""

from __future__ import annotations

import triton
import triton.language as tl

from server.ops.triton.float8_cache import as_stored, to_multiply


@triton.jit
def load_rotated(at, mask, d, cos, sin, ROTARY_DIM: tl.constexpr):
    """Elements `d` of heads, the first ROTARY_DIM rotated: each with its partner in their other half."""
    x = tl.load(at, mask=mask, other=0.0)
    if ROTARY_DIM > 0:
        low = d < ROTARY_DIM // 2
        offset = tl.where(low, ROTARY_DIM // 2, -(ROTARY_DIM // 2))
        partner = tl.load(at + offset, mask=mask & (d < ROTARY_DIM), other=0.0)
        turned = x.to(tl.float32) * cos + tl.where(low, -1.0, 1.0) * partner.to(tl.float32) * sin
        x = turned.to(x.dtype)
    return x


@triton.jit
def angles_of(cos_table, sin_table, position, d, ROTARY_DIM: tl.constexpr):
    """(cosines, sines) of elements `d` of heads at `position`."""
    cos, sin = d, d
    if ROTARY_DIM > 0:
        present = (d < ROTARY_DIM) & (position >= 0)
        cos = tl.load(cos_table + position * ROTARY_DIM + d, mask=present, other=1.0).to(tl.float32)
        sin = tl.load(sin_table + position * ROTARY_DIM + d, mask=present, other=0.0).to(tl.float32)
    return cos, sin


@triton.jit
def take_token(
    query, key, value, cos, sin, base, table, kv_head, position, first, k_scale, v_scale, cache_scales,
    block_stride, value_offset,
    GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TOKEN: tl.constexpr, ROTARY_DIM: tl.constexpr,
):  # fmt: skip
    """(queries, key, value) of a new token, rotated; the `first` program to take it stores the last two.

    The key and the value are as later tokens will see them.
    """
    g, d = tl.arange(0, GROUP_TILE), tl.arange(0, DIM_TILE)
    mask = (g < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    at = query + (kv_head * GROUP + g)[:, None] * HEAD_DIM + d[None, :]
    q = load_rotated(at, mask, d[None, :], cos[None, :], sin[None, :], ROTARY_DIM)
    mask = (d < HEAD_DIM) & first
    k_new = load_rotated(key + kv_head * HEAD_DIM + d, mask, d, cos, sin, ROTARY_DIM)
    k_new = as_stored(k_new, k_scale, cache_scales)
    v_new = tl.load(value + kv_head * HEAD_DIM + d, mask=mask, other=0.0)
    v_new = as_stored(v_new, v_scale, cache_scales)
    block = tl.load(table + position // BLOCK_SIZE).to(tl.int64)
    at = base + block * block_stride + (position % BLOCK_SIZE) * TOKEN + d
    tl.store(at, k_new, mask=mask)
    tl.store(at + value_offset, v_new, mask=mask)
    return to_multiply(q, cache_scales), k_new, v_new


@triton.jit
def take_queries(
    query, query_stride, cos_table, sin_table, positions, decode, count, kv_head,
    GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
):  # fmt: skip
    """[GROUP_TILE, DIM_TILE]: the queries of `count` decodes from `decode` on, GROUP each, rotated."""
    row, d = tl.arange(0, GROUP_TILE), tl.arange(0, DIM_TILE)[None, :]
    each, mask = decode + row // GROUP, row < count * GROUP
    position = tl.load(positions + each, mask=mask, other=-1)
    cos, sin = angles_of(cos_table, sin_table, position[:, None], d, ROTARY_DIM)
    at = query + each * query_stride + (kv_head * GROUP + row % GROUP) * HEAD_DIM
    return load_rotated(at[:, None] + d, mask[:, None] & (d < HEAD_DIM), d, cos, sin, ROTARY_DIM)
