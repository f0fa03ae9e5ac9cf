"""Keys and values in FP8: what kernels do with them, by key head: ``stored · scale``.

Products with them are of float16, which FP8 is converted to exactly and in one instruction for two numbers.
Where `cache_scales` is None the cache is not in FP8, and everything here leaves things as they are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from server.device.triton_support import INTERPRETED

_ASSEMBLY = tl.constexpr(not INTERPRETED)


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


@triton.jit
def unpack_pairs(x, dtype: tl.constexpr):
    """The (even, odd) numbers of pairs in int16, in `dtype`, which holds FP8 exactly."""
    if _ASSEMBLY:
        even, odd = tl.inline_asm_elementwise(
            """{
            .reg .b32 a;
            .reg .b16 e, o;
            prmt.b32 a, $2, $2, 0x3120;
            mov.b32 {e, o}, a;
            cvt.rn.f16x2.e4m3x2 $0, e;
            cvt.rn.f16x2.e4m3x2 $1, o;
            }""",
            "=r,=r,r", [x], dtype=(tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip
    else:
        even = (x & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
        odd = ((x >> 8) & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    return even.to(dtype), odd.to(dtype)
