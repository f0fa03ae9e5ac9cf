"""Products with many matrices, each on the rows that are sent to it; the host does not look how many."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import INTERPRETED, launch_options
from server.layers.microscaled import Microscaled
from server.ops.triton.routing import Assignments

Stack = Tensor | Microscaled
"""The matrices of all experts."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How products are divided.

    Attributes:
        rows, columns, depth: rows and outputs of a program, and inputs that it takes at once.
        warps, stages: of a program, and tiles that it reads ahead, the current one included.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


FEW, SOME, MANY = Tiling(16, 64, 128, 4, 4), Tiling(64, 64, 64, 4, 3), Tiling(128, 128, 64, 8, 3)
"""Where experts get few rows, so that reading weights is all that counts; some; and many, of long prompts."""
_SOME_ROWS, _MANY_ROWS = 32, 256
"""Rows that an expert gets on average, from which on there are some, or many."""
_ASSEMBLY = tl.constexpr(not INTERPRETED)
_MIXED = 1024
"""Columns of a program that adds up."""


def tiling_of(rows_each: float, dtype: torch.dtype) -> Tiling:
    """For so many rows of an expert, on average."""
    if rows_each < _SOME_ROWS:
        return FEW
    # float32, of twice the bytes, finds no room for the largest tiles
    return SOME if rows_each < _MANY_ROWS or dtype == torch.float32 else MANY


@triton.jit
def _codes_as_floats(codes, scales, dtype: tl.constexpr):
    """Numbers of MXFP4 codes in [.., 0..15] by the exponents of their scales: exact in float32, then `dtype`.

    The three lower bits of a code are those of a float32 that is 2**126 times too small.
    """
    codes = codes.to(tl.int32)
    numbers = (((codes & 7) << 22) | ((codes & 8) << 28)).to(tl.float32, bitcast=True)
    factors = (scales.to(tl.int32) << 23).to(tl.float32, bitcast=True)  # 2**(scale - 127)
    return (numbers * 8.507059173023462e37 * factors).to(dtype)  # 2**126


@triton.jit
def _unpack(pairs, scales, dtype: tl.constexpr):
    """The (first, second) numbers of bytes of two codes, by the exponents of their scales."""
    if _ASSEMBLY and dtype == tl.bfloat16:
        # as in `_codes_as_floats`, four bytes at a time: bits of bfloat16 that is 2**126 times too small
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
        factors = (tl.maximum(scales.to(tl.int32) - 1, 0) << 7).to(tl.int16).to(tl.bfloat16, bitcast=True)
        first, second = first * factors, second * factors
    else:
        first = _codes_as_floats(pairs & 15, scales, dtype)
        second = _codes_as_floats(pairs >> 4, scales, dtype)
    return first, second


@triton.jit
def _load_weights(
    weight, scales, row, begin, wanted, dtype: tl.constexpr, INPUTS: tl.constexpr, DEPTH: tl.constexpr
):  # fmt: skip
    """[outputs, inputs] of the stack's rows `row` from input `begin` on."""
    if scales is None:
        k = begin + tl.arange(0, DEPTH)
        mask = wanted[:, None] & (k < INPUTS)[None, :]
        found = tl.load(weight + row[:, None] * INPUTS + k[None, :], mask=mask, other=0.0)
    else:
        byte = begin // 2 + tl.arange(0, DEPTH // 2)
        mask = wanted[:, None] & (byte < INPUTS // 2)[None, :]
        pairs = tl.load(weight + row[:, None] * (INPUTS // 2) + byte[None, :], mask=mask, other=0)
        group = begin // 32 + tl.arange(0, DEPTH // 32)
        mask = wanted[:, None] & (group < INPUTS // 32)[None, :]
        factors = tl.load(scales + row[:, None] * (INPUTS // 32) + group[None, :], mask=mask, other=0)
        factors = tl.broadcast_to(factors[:, :, None], (row.shape[0], DEPTH // 32, 16))
        factors = tl.reshape(factors, (row.shape[0], DEPTH // 2))
        first, second = _unpack(pairs, factors, dtype)
        found = tl.interleave(first, second)
    return found


@triton.jit
def _product(
    x, weight, scales, bias, y, order, begins, ends, first_tiles, experts, shares, x_stride,
    COUNT: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, USED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of rows, tile of outputs).

    Without `shares`, rows of x are tokens and those of y are sorted by expert; otherwise rows of x are sorted
    and those of y are choices of tokens, each times its share.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    tile = tl.program_id(0)
    expert = tl.load(experts + tile)
    if expert >= COUNT:
        return
    row = tl.load(begins + expert) + (tile - tl.load(first_tiles + expert)) * ROWS + tl.arange(0, ROWS)
    present = row < tl.load(ends + expert)
    choice = tl.load(order + row, mask=present, other=0)
    source = choice // USED if shares is None else row
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    wanted = n < OUTPUTS
    x_at = x + source.to(tl.int64)[:, None] * x_stride + k[None, :]
    stacked = expert.to(tl.int64) * OUTPUTS + n
    # weights on the left, where matrix units take numbers that are made of codes from registers
    turned = tl.zeros((COLUMNS, ROWS), tl.float32)
    for begin in range(0, INPUTS, DEPTH):
        a = tl.load(x_at + begin, mask=present[:, None] & (k < INPUTS - begin)[None, :], other=0.0)
        w = _load_weights(weight, scales, stacked, begin, wanted, x.dtype.element_ty, INPUTS, DEPTH)
        turned = tl.dot(w, tl.trans(a), turned, input_precision=PRECISION)
    total = tl.trans(turned)
    if bias is not None:
        total += tl.load(bias + expert * OUTPUTS + n, mask=wanted, other=0.0).to(tl.float32)[None, :]
    target = row
    if shares is not None:
        total *= tl.load(shares + choice, mask=present, other=0.0)[:, None]
        target = choice
    at = y + target.to(tl.int64)[:, None] * OUTPUTS + n[None, :]
    tl.store(at, total.to(y.dtype.element_ty), mask=present[:, None] & wanted[None, :])


@triton.jit
def _mix(parts, y, SIZE: tl.constexpr, USED: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr):
    """Program (row, tile of columns): the sum of what its experts made of a row."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.float32)
    for part in tl.static_range(USED):
        total += tl.load(parts + (row * USED + part) * SIZE + i, mask=i < SIZE, other=0.0)
    tl.store(y + row * SIZE + i, total.to(y.dtype.element_ty), mask=i < SIZE)


def _launch(
    x: Tensor,
    weight: Stack,
    bias: Tensor | None,
    y: Tensor,
    to: Assignments,
    by: Tiling,
    shares: Tensor | None = None,
) -> None:
    """Multiply rows sent to experts: tokens, or, with `shares`, rows that are sorted by expert already."""
    count, outputs, inputs = weight.shape
    stored, scales = (weight.blocks, weight.scales) if isinstance(weight, Microscaled) else (weight, None)
    _product[len(to.experts), -(-outputs // by.columns)](
        x, stored, scales, bias, y, to.order, to.begins, to.ends, to.first_tiles, to.experts,
        shares, x.stride(0),
        COUNT=count, INPUTS=inputs, OUTPUTS=outputs, USED=to.used,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        ROWS=to.tile, COLUMNS=by.columns, DEPTH=by.depth, num_warps=by.warps, num_stages=by.stages,
        **launch_options(x.device),
    )  # fmt: skip


def inward(x: Tensor, weight: Stack, bias: Tensor | None, to: Assignments, by: Tiling) -> Tensor:
    """The first product of each row's experts: [rows, inputs] → [rows × used, outputs], sorted by expert.

    Args:
        weight: [experts, outputs, inputs], floats or MXFP4.
        bias: [experts, outputs].
    """
    y = torch.empty((len(to.order), weight.shape[1]), dtype=x.dtype, device=x.device)
    _launch(x, weight, bias, y, to, by)
    return y


def outward(
    x: Tensor, weight: Stack, bias: Tensor | None, to: Assignments, by: Tiling, shares: Tensor
) -> Tensor:
    """The last product of experts, summed up: [rows × used, inputs], sorted by expert → [rows, outputs].

    Args:
        weight, bias: as of `inward`.
        shares: float32 [rows, used], what each expert's product is multiplied by.
    """
    parts = torch.empty((len(to.order), weight.shape[1]), dtype=torch.float32, device=x.device)
    _launch(x, weight, bias, parts, to, by, shares)
    y = torch.empty((len(shares), weight.shape[1]), dtype=x.dtype, device=x.device)
    _mix[(len(y), -(-y.shape[1] // _MIXED))](
        parts, y, SIZE=y.shape[1], USED=to.used, TILE=_MIXED, num_warps=4, **launch_options(x.device)
    )
    return y
