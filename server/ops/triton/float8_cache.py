"""Keys and values in FP8: what kernels do with them, by key head: ``stored · scale``.

Products with them are of float16, which FP8 is converted to exactly and in one instruction for two numbers.
Where `cache_scales` is None the cache is not in FP8, and everything here leaves things as they are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from server.device.triton_support import INTERPRETED

PAIR_SCALE = tl.constexpr(256.0)
"""What numbers of `unpack_pairs` are to be multiplied by."""
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
def load_pairs(at, valid, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr):
    """Values of the tokens at `at`, two numbers in an int16.

    A product takes values across tokens: shared memory turns matrices of 16 bits as it is read, but numbers
    of 8 bits would be read one by one.
    """
    pair = tl.arange(0, DIM_TILE // 2)
    pairs = at.to(tl.pointer_type(tl.int16), bitcast=True)[:, None] + pair[None, :]
    return tl.load(pairs, mask=valid[:, None] & (pair < HEAD_DIM // 2)[None, :], other=0)


@triton.jit
def unpack_pairs(x, dtype: tl.constexpr):
    """(even, odd) numbers by `PAIR_SCALE`, in float16: the bits of FP8 as they are, in other places."""
    if _ASSEMBLY:
        even, odd = tl.inline_asm_elementwise(
            """{
            .reg .b32 a, b;
            shl.b32 a, $2, 8;
            and.b32 b, a, 0x80008000;
            shr.u32 a, a, 1;
            and.b32 a, a, 0x3f803f80;
            or.b32 $0, a, b;
            and.b32 b, $2, 0x80008000;
            shr.u32 a, $2, 1;
            and.b32 a, a, 0x3f803f80;
            or.b32 $1, a, b;
            }""",
            "=r,=r,r", [x], dtype=(tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip
    else:
        even = (((x & 0x80) << 8) | ((x & 0x7F) << 7)).to(tl.float16, bitcast=True)
        odd = ((x & -32768) | ((x >> 1) & 0x3F80)).to(tl.float16, bitcast=True)
    return even.to(dtype), odd.to(dtype)
