# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The matrices of all experts as a kernel reads them: tiles become floats in registers, in every form."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from server.device.triton_support import INTERPRETED
from server.layers.expert_stack import ExpertStack
from server.layers.microscaled import Microscaled
from server.quantization.fp8.stack import ScaledStack
from server.quantization.gptq.kernels.triton_codes import (
    factors_at,
    paired_weights_of,
    shrunk_weights_of,
    triton_type,
    weights_of,
)
from server.quantization.gptq.kernels.triton_product import way
from server.quantization.gptq.stack import GroupedStack

Stack = Tensor | ExpertStack
"""The matrices of all experts."""
_ASSEMBLY = tl.constexpr(not INTERPRETED)


def arguments(stack: Stack) -> tuple[Tensor, Tensor | None, Tensor | None, dict[str, Any]]:
    """What kernels take of a stack: (numbers or codes, scales, order of the inputs, constants).

    Constants:
        FORM: how it is stored: ``floats``, ``mxfp4``, ``codes`` or ``scaled``.
        BITS, GROUP, SCALES, WAY: of codes, as in `triton_codes`.
        BLOCK: outputs and inputs that share a scale; 0: none do, or each output has one.

    Raises:
        TypeError: there is no kernel for such.
    """
    found: dict[str, Any] = {
        "FORM": "floats", "BITS": 4, "GROUP": 1, "SCALES": tl.float16, "WAY": "plain", "BLOCK": 0
    }  # fmt: skip
    if not isinstance(stack, ExpertStack):
        return stack, None, None, found
    if isinstance(stack, Microscaled):
        return stack.blocks, stack.scales, None, found | {"FORM": "mxfp4"}
    if isinstance(stack, ScaledStack):
        return stack.weight, stack.weight_scale, None, found | {"FORM": "scaled", "BLOCK": stack.block or 0}
    if isinstance(stack, GroupedStack) and stack.words is not None:
        codes = {"BITS": stack.bits, "GROUP": stack.group_size, "SCALES": triton_type(stack.scales_dtype)}
        codes["WAY"] = way(stack.bits, stack.dtype, stack.symmetric)
        return stack.words, stack.factors, stack.order, found | {"FORM": "codes"} | codes
    raise TypeError(f"no kernel multiplies with {type(stack).__name__}")


@triton.jit
def _codes_as_floats(codes, factors, dtype: tl.constexpr):
    """Numbers of MXFP4 codes in [.., 0..15] by their factors: exact in float32, then `dtype`.

    The three lower bits of a code are those of a float32 that is 2**126 times too small.
    """
    codes = codes.to(tl.int32)
    numbers = (((codes & 7) << 22) | ((codes & 8) << 28)).to(tl.float32, bitcast=True)
    return (numbers * 8.507059173023462e37 * factors).to(dtype)  # 2**126


@triton.jit
def _factors_of(scales, dtype: tl.constexpr):
    """What `_unpack` multiplies by, of the exponents of scales."""
    if _ASSEMBLY and dtype == tl.bfloat16:
        factors = ((scales.to(tl.int32) + 126) << 7).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        factors = (scales.to(tl.int32) << 23).to(tl.float32, bitcast=True)  # 2**(scale - 127)
    return factors


@triton.jit
def _unpack(pairs, factors, dtype: tl.constexpr):
    """The (first, second) numbers of bytes of two codes, by `_factors_of` their scales."""
    if _ASSEMBLY and dtype == tl.bfloat16:
        # as in `_codes_as_floats`, four bytes at a time: bits of bfloat16 that is 2**126 times too small;
        # no scale is above LARGEST_SCALE, so that one factor makes up for it
        first, second = tl.inline_asm_elementwise(
            """{
            .reg .b32 low, high, sign, rest;
            prmt.b32 low, $4, $4, 0x1100;
            prmt.b32 high, $4, $4, 0x3322;
            shl.b32 sign, low, 12;
            shl.b32 rest, low, 6;
            and.b32 sign, sign, 0x80008000;
            and.b32 rest, rest, 0x01c001c0;
            or.b32 $0, sign, rest;
            shl.b32 sign, high, 12;
            shl.b32 rest, high, 6;
            and.b32 sign, sign, 0x80008000;
            and.b32 rest, rest, 0x01c001c0;
            or.b32 $1, sign, rest;
            shl.b32 sign, low, 8;
            shl.b32 rest, low, 2;
            and.b32 sign, sign, 0x80008000;
            and.b32 rest, rest, 0x01c001c0;
            or.b32 $2, sign, rest;
            shl.b32 sign, high, 8;
            shl.b32 rest, high, 2;
            and.b32 sign, sign, 0x80008000;
            and.b32 rest, rest, 0x01c001c0;
            or.b32 $3, sign, rest;
            }""",
            "=r,=r,=r,=r,r", [pairs], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
        )  # fmt: skip
        first, second = first * factors, second * factors
    else:
        first = _codes_as_floats(pairs & 15, factors, dtype)
        second = _codes_as_floats(pairs >> 4, factors, dtype)
    return first, second


@triton.jit
def _load_mxfp4(
    blocks, scales, row, begin, wanted, dtype: tl.constexpr, INPUTS: tl.constexpr, DEPTH: tl.constexpr
):  # fmt: skip
    """[rows, DEPTH] of the stack's rows `row`, from input `begin` on."""
    byte = begin // 2 + tl.arange(0, DEPTH // 2)
    mask = wanted[:, None] & (byte < INPUTS // 2)[None, :]
    pairs = tl.load(blocks + row[:, None] * (INPUTS // 2) + byte[None, :], mask=mask, other=0)
    group = begin // 32 + tl.arange(0, DEPTH // 32)
    mask = wanted[:, None] & (group < INPUTS // 32)[None, :]
    factors = tl.load(scales + row[:, None] * (INPUTS // 32) + group[None, :], mask=mask, other=0)
    factors = _factors_of(factors, dtype)  # before there is one for every number
    factors = tl.broadcast_to(factors[:, :, None], (row.shape[0], DEPTH // 32, 16))
    factors = tl.reshape(factors, (row.shape[0], DEPTH // 2))
    first, second = _unpack(pairs, factors, dtype)
    return tl.interleave(first, second)


@triton.jit
def _load_codes(
    words, factors, expert, piece, n, wanted,
    dtype: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, SCALES: tl.constexpr, WAY: tl.constexpr,
):  # fmt: skip
    """[outputs, 128] of outputs `n` of an expert; what is `shrunk` comes times `SHRINKAGE`."""
    expert = expert.to(tl.int64)
    row = (expert * (INPUTS // 128) + piece) * OUTPUTS + n
    at = words + row[:, None] * (4 * BITS) + tl.arange(0, 4 * BITS)[None, :]
    packed = tl.load(at, mask=wanted[:, None], other=0)
    factor = factors_at(factors + expert * (INPUTS // GROUP * OUTPUTS), piece, n, wanted, OUTPUTS, GROUP)
    if WAY == "shrunk":
        found = shrunk_weights_of(packed, factor, SCALES)
    elif WAY == "paired":
        found = paired_weights_of(packed, factor, SCALES, dtype)
    else:
        found = weights_of(packed, factor, BITS, SCALES, dtype, False)
    return found


@triton.jit
def load_weights(
    weight, scales, expert, n, begin, wanted, dtype: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
    FORM: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, SCALES: tl.constexpr, WAY: tl.constexpr,
):  # fmt: skip
    """`dtype` [outputs, DEPTH] of outputs `n` of an expert, from input `begin` on.

    Of FORM ``scaled`` the scales are left to who multiplies.
    """
    row = expert.to(tl.int64) * OUTPUTS + n
    if FORM == "codes":
        found = _load_codes(
            weight, scales, expert, begin // 128, n, wanted, dtype, INPUTS, OUTPUTS, BITS, GROUP, SCALES, WAY
        )
    elif FORM == "mxfp4":
        found = _load_mxfp4(weight, scales, row, begin, wanted, dtype, INPUTS, DEPTH)
    else:
        k = begin + tl.arange(0, DEPTH)
        mask = wanted[:, None] & (k < INPUTS)[None, :]
        found = tl.load(weight + row[:, None] * INPUTS + k[None, :], mask=mask, other=0.0).to(dtype)
    return found
