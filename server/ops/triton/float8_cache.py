"""Keys and values in FP8: what kernels do with them, by key head: ``stored · scale``.

Products with them are of float16, which FP8 is converted to exactly and in one instruction for two numbers.
Where `cache_scales` is None the cache is not in FP8, and everything here leaves things as they are.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scales_of(cache_scales, head, KV_HEADS: tl.constexpr):
    """Scales of keys and of values of key heads `head`; the last one has those of heads that do not exist."""
    k_scale, v_scale = 1.0, 1.0
    if cache_scales is not None:
        at = cache_scales + tl.minimum(head, KV_HEADS - 1)
        k_scale, v_scale = tl.load(at), tl.load(at + KV_HEADS)
    return k_scale, v_scale


@triton.jit
def as_stored(x, scale, cache_scales):
    """``x / scale`` in FP8; what is too large becomes 448, the greatest there is."""
    if cache_scales is not None:
        x = x.to(tl.float32) / scale
        x = tl.minimum(tl.maximum(x, -448.0), 448.0).to(tl.float8e4nv)
    return x


@triton.jit
def to_multiply(q, cache_scales):
    """Queries in the type that they are multiplied in; float32 stays."""
    if cache_scales is not None and q.dtype == tl.bfloat16:
        q = q.to(tl.float16)
    return q
