# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Codes of 4 or 8 bits as Triton kernels hold them: the layout in memory, and the way to numbers.

The matrix units of NVIDIA GPUs take a tile of 16 × 16 weights from the registers of a warp, where thread
``4 r + t`` holds, of row r, inputs 2 t and 2 t + 1 and those 8 further on. Words are packed so that each
thread finds just these codes in the 16 bytes it loads: no weight is ever moved between threads. Of 128
neighbouring inputs of one output (a piece), input ``8 (n j + i) + 2 t + h``, where n is ``16 / bits`` and
i < n, stands in word ``(16 / n) t + j`` at bit ``bits · i + 16 h``. A piece of all outputs is one
contiguous stretch of memory: int32 [inputs / 128, outputs, 4 · bits].

The scale of a group and its zero point share an int32 [groups, outputs], the scale's 16 bits below: four
bytes are the least that is copied to shared memory while the matrix units work.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE = 128
"""Inputs of a piece."""


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8 [inputs, outputs] → int32 [inputs / 128, outputs, 4 · bits]."""
    places = 16 // bits
    pieces = codes.reshape(-1, 16 // places, places, 4, 2, codes.shape[1])  # piece, j, i, t, h, output
    words = torch.zeros_like(pieces[:, :, 0, :, 0], dtype=torch.int32)
    for i in range(places):
        for h in range(2):
            words |= pieces[:, :, i, :, h].to(torch.int32) << (bits * i + 16 * h)
    return words.permute(0, 3, 2, 1).flatten(2).contiguous()  # piece, output, (t, j)


def pack_factors(scales: Tensor, zeros: Tensor) -> Tensor:
    """float16 or bfloat16 and uint8, both [groups, outputs] → int32 of the same shape."""
    return (scales.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF) | (zeros.to(torch.int32) << 16)


@triton.jit
def scale_of(factors, SCALES: tl.constexpr):
    """Scales, stored as SCALES, as float32."""
    return (factors & 0xFFFF).to(tl.uint16).to(SCALES, bitcast=True).to(tl.float32)


@triton.jit
def _halves(pair, DTYPE: tl.constexpr):
    """The numbers of 16 bits in words: [rows, words, 2] in DTYPE."""
    low = (pair & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True)
    high = ((pair >> 16) & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True)
    return tl.join(low, high)


@triton.jit
def _centred(words, i: tl.constexpr, zero, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """``code - zero`` of the codes at place i of both halves of words: [rows, words, 2] in DTYPE, exact.

    A code becomes a number without a conversion: or-ed into the low bits of the float that stands for
    2⁷ (bfloat16), 2¹⁰ (float16) or 2²³ (float32), it is that number plus the code.

    Args:
        zero: float32 [rows, words].
    """
    mask: tl.constexpr = (1 << BITS) - 1
    if BITS == 8 and tl.bfloat16 == DTYPE:
        low = ((words >> (BITS * i)) & mask) | 0x4B000000
        high = ((words >> (BITS * i + 16)) & mask) | 0x4B000000
        wide = tl.join(low, high).to(tl.float32, bitcast=True)
        return (wide - (zero[:, :, None] + 8388608.0)).to(DTYPE)
    else:  # noqa: RET505 - Triton compiles what follows a return
        ones: tl.constexpr = 0x64006400 if tl.float16 == DTYPE else 0x43004300
        base: tl.constexpr = 1024.0 if tl.float16 == DTYPE else 128.0
        pair = ((words >> (BITS * i)) & (mask * 0x10001)) | ones
        return _halves(pair, DTYPE) - (zero + base).to(DTYPE)[:, :, None]


@triton.jit
def _ordered(p0, p1, p2, p3, BITS: tl.constexpr):
    """Pairs [rows, words, 2] of places 0 to 3 (8 bits: 0 and 1 only) → [rows, 128], inputs in order."""
    rows: tl.constexpr = p0.shape[0]
    codes = tl.join(p0, p1) if BITS == 8 else tl.join(tl.join(p0, p2), tl.join(p1, p3))
    return codes.reshape(rows, 4, BITS, 2, 16 // BITS).permute(0, 2, 4, 1, 3).reshape(rows, 128)


@triton.jit
def _by_word(factors, BITS: tl.constexpr):
    """[rows, groups] → [rows, 4 · BITS]: of words (t, j), neighbouring j share a group."""
    rows: tl.constexpr = factors.shape[0]
    groups: tl.constexpr = factors.shape[1]
    shape: tl.constexpr = (rows, 4, groups, BITS // groups)
    return tl.broadcast_to(factors[:, None, :, None], shape).reshape(rows, 4 * BITS)


@triton.jit
def weights_of(
    words, factors,
    BITS: tl.constexpr, SCALES: tl.constexpr, DTYPE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Weights of a piece: DTYPE [rows, 128].

    Args:
        words: int32 [rows, 4 · BITS].
        factors: int32 [rows, groups]; groups divide the piece.
        EXACT: multiply in float32 and round once; else in DTYPE, scales rounded before.
    """
    rows: tl.constexpr = words.shape[0]
    groups: tl.constexpr = factors.shape[1]
    number: tl.constexpr = tl.float32 if EXACT else DTYPE
    zeros = _by_word((factors >> 16).to(tl.float32), BITS)
    p0 = _centred(words, 0, zeros, BITS, DTYPE)
    p1 = _centred(words, 1, zeros, BITS, DTYPE)
    if BITS == 4:
        p2 = _centred(words, 2, zeros, BITS, DTYPE)
        codes = _ordered(p0, p1, p2, _centred(words, 3, zeros, BITS, DTYPE), BITS)
    else:
        codes = _ordered(p0, p1, p0, p1, BITS)
    scale = scale_of(factors, SCALES).to(number)[:, :, None]
    return (codes.reshape(rows, groups, 128 // groups).to(number) * scale).to(DTYPE).reshape(rows, 128)


SHRINKAGE = tl.constexpr(2.0**-24)
"""What `shrunk_weights_of` multiplies weights by."""


@triton.jit
def _twice(number, DTYPE: tl.constexpr):
    """float32 → int32 with the number in DTYPE, of 16 bits, in both halves."""
    bits = number.to(DTYPE).to(tl.uint16, bitcast=True).to(tl.int32)
    return bits | (bits << 16)


@triton.jit
def _by_pairs(words, factor, offset, asm: tl.constexpr, DTYPE: tl.constexpr):
    """Numbers of the codes in words by `asm`, two at a time, of words and factors in pairs: [rows, 128]."""
    sources: tl.constexpr = "=r,r,r,r"
    p0 = tl.inline_asm_elementwise(asm, sources, [words, factor, offset], tl.int32, is_pure=True, pack=1)
    p1 = tl.inline_asm_elementwise(asm, sources, [words >> 4, factor, offset], tl.int32, is_pure=True, pack=1)
    p2 = tl.inline_asm_elementwise(asm, sources, [words >> 8, factor, offset], tl.int32, is_pure=True, pack=1)
    p3 = tl.inline_asm_elementwise(
        asm, sources, [words >> 12, factor, offset], tl.int32, is_pure=True, pack=1
    )
    return _ordered(_halves(p0, DTYPE), _halves(p1, DTYPE), _halves(p2, DTYPE), _halves(p3, DTYPE), 4)


@triton.jit
def paired_weights_of(words, factors, SCALES: tl.constexpr, DTYPE: tl.constexpr):
    """As `weights_of`, of 4-bit codes and rounded twice, with its instructions written out.

    The compiler would take words apart and spend twice as many. bfloat16 has products with sums alone
    before Hopper, so that the difference and the product are such.
    """
    factor = _by_word(_twice(scale_of(factors, SCALES), DTYPE), 4)
    zero = (factors >> 16).to(tl.float32)
    if tl.float16 == DTYPE:
        asm: tl.constexpr = """{ .reg .b32 code; lop3.b32 code, $1, 0x000F000F, 0x64006400, 0xEA;
            sub.f16x2 code, code, $3; mul.f16x2 $0, code, $2; }"""
        return _by_pairs(words, factor, _by_word(_twice(zero + 1024.0, DTYPE), 4), asm, DTYPE)
    else:  # noqa: RET505
        wide: tl.constexpr = """{ .reg .b32 code, one, none;
            mov.b32 one, 0x3F803F80; mov.b32 none, 0x80008000;
            lop3.b32 code, $1, 0x000F000F, 0x43004300, 0xEA;
            fma.rn.bf16x2 code, code, one, $3; fma.rn.bf16x2 $0, code, $2, none; }"""
        return _by_pairs(words, factor, _by_word(_twice(-128.0 - zero, DTYPE), 4), wide, DTYPE)


@triton.jit
def shrunk_weights_of(words, factors, SCALES: tl.constexpr):
    """As `weights_of`, of 4-bit codes with zero points of 8, in bfloat16 and times 2⁻²⁴, in half the work.

    Alone in the low bits of a bfloat16 a code is, as a denormal, ``code · 2⁻¹³³``; one fused
    multiply-add makes it ``(code - 8) · scale``, rounded once, and 2⁻²⁴ keeps the factors in range.
    """
    # rounded first: what follows are products with powers of two
    scale = (scale_of(factors, SCALES) * SHRINKAGE).to(tl.bfloat16).to(tl.float32)
    factor = _by_word(_twice(scale * 2.0**65 * 2.0**68, tl.bfloat16), 4)  # 2¹³³ is no float32
    offset = _by_word(_twice(scale * -8.0, tl.bfloat16), 4)
    asm: tl.constexpr = """{ .reg .b32 code; and.b32 code, $1, 0x000F000F;
        fma.rn.bf16x2 $0, code, $2, $3; }"""
    return _by_pairs(words, factor, offset, asm, tl.bfloat16)


@triton.jit
def factors_at(factors, piece, n, inside, N, GROUP: tl.constexpr):
    """Factors [outputs, groups] of a piece for outputs n, of which those `inside` exist."""
    groups: tl.constexpr = 128 // GROUP if GROUP < 128 else 1
    first = piece * groups if GROUP < 128 else piece // (GROUP // 128)
    at = (first + tl.arange(0, groups))[None, :] * N + n[:, None]
    return tl.load(factors + at, mask=inside[:, None], other=0)


@triton.jit
def _dequantize_kernel(
    words, factors, weight, N, K,
    BITS: tl.constexpr, GROUP: tl.constexpr, SCALES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Program (tile of outputs, piece)."""
    n, piece = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    inside = n < N
    at = (piece.to(tl.int64) * N + n)[:, None] * (4 * BITS) + tl.arange(0, 4 * BITS)[None, :]
    packed = tl.load(words + at, mask=inside[:, None], other=0)
    values = weights_of(
        packed, factors_at(factors, piece, n, inside, N, GROUP), BITS, SCALES, weight.dtype.element_ty, True
    )
    out = weight + n.to(tl.int64)[:, None] * K + piece * 128 + tl.arange(0, 128)[None, :]
    tl.store(out, values, mask=inside[:, None])


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """The same type in Triton."""
    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[dtype]


def dequantize(
    words: Tensor, factors: Tensor, bits: int, group_size: int, scales: torch.dtype, dtype: torch.dtype
) -> Tensor:
    """The weight as floats: `dtype` [outputs, inputs], inputs in the order of groups.

    Args:
        words, factors: packed.
        scales: in which they were given.
    """
    pieces, outputs, _ = words.shape
    weight = torch.empty(outputs, pieces * PIECE, dtype=dtype, device=words.device)
    rows = 64
    _dequantize_kernel[(triton.cdiv(outputs, rows), pieces)](
        words, factors, weight, outputs, pieces * PIECE,
        BITS=bits, GROUP=group_size, SCALES=triton_type(scales), ROWS=rows,
    )  # fmt: skip
    return weight
