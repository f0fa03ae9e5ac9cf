"""Products with many matrices, each on the rows that are sent to it; the host does not look how many."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options
from server.layers.microscaled import Microscaled
from server.ops.triton.routing import Assignments
from server.ops.triton.routing import assign as assign_tiles

Stack = Tensor | Microscaled
"""The matrices of all experts."""

_COLUMNS, _DEPTH = 64, 64
"""Outputs of a program, and inputs that it takes at once."""
_FEW, _MANY = 16, 64
"""Rows of a program: of steps in which an expert gets few of them, and of long prompts."""
_MIXED = 1024
"""Columns of a program that adds up."""


def assign(chosen: Tensor, count: int) -> Assignments:
    """Sort choices int32 [rows, used] by expert, of which there are `count`."""
    return assign_tiles(chosen, count, _FEW, _MANY)


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
def _load_weights(
    weight, scales, expert, n, begin, wanted, dtype: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """[inputs, outputs] of an expert from input `begin` on."""
    row = expert.to(tl.int64) * OUTPUTS + n
    if scales is None:
        k = begin + tl.arange(0, DEPTH)
        at = weight + row[None, :] * INPUTS + k[:, None]
        return tl.load(at, mask=(k < INPUTS)[:, None] & wanted[None, :], other=0.0)
    byte = begin // 2 + tl.arange(0, DEPTH // 2)
    mask = wanted[:, None] & (byte < INPUTS // 2)[None, :]
    pairs = tl.load(weight + row[:, None] * (INPUTS // 2) + byte[None, :], mask=mask, other=0)
    factors = tl.load(scales + row[:, None] * (INPUTS // 32) + byte[None, :] // 16, mask=mask, other=0)
    first, second = _codes_as_floats(pairs & 15, factors, dtype), _codes_as_floats(pairs >> 4, factors, dtype)
    return tl.trans(tl.interleave(first, second))


@triton.jit
def _product(
    x, weight, scales, bias, y, order, begins, ends, first_tiles, experts, shares, x_stride,
    COUNT: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, USED: tl.constexpr,
    GATHER: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of rows, tile of outputs).

    With GATHER, rows of x are tokens and those of y are sorted by expert; otherwise rows of x are sorted and
    those of y are choices of tokens, each times its share.
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
    source = choice // USED if GATHER else row
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    wanted = n < OUTPUTS
    x_at = x + source.to(tl.int64)[:, None] * x_stride + k[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, INPUTS, DEPTH):
        within = k < INPUTS - begin
        a = tl.load(x_at + begin, mask=present[:, None] & within[None, :], other=0.0)
        b = _load_weights(
            weight, scales, expert, n, begin, wanted, x.dtype.element_ty, INPUTS, OUTPUTS, DEPTH
        )
        total = tl.dot(a, b, total, input_precision=PRECISION)
    if bias is not None:
        total += tl.load(bias + expert * OUTPUTS + n, mask=wanted, other=0.0).to(tl.float32)[None, :]
    target = row
    if not GATHER:
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
    x: Tensor, weight: Stack, bias: Tensor | None, y: Tensor, to: Assignments, shares: Tensor, gather: bool
) -> Tensor:
    count, outputs, inputs = weight.shape
    stored, scales = (weight.blocks, weight.scales) if isinstance(weight, Microscaled) else (weight, None)
    grid = (len(to.experts), -(-outputs // _COLUMNS))
    _product[grid](
        x, stored, scales, bias, y, to.order, to.begins, to.ends, to.first_tiles,
        to.experts, shares, x.stride(0),
        COUNT=count, INPUTS=inputs, OUTPUTS=outputs, USED=to.used, GATHER=gather,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        ROWS=to.tile, COLUMNS=_COLUMNS, DEPTH=_DEPTH, num_warps=4, num_stages=3,
        **launch_options(x.device),
    )  # fmt: skip
    return y


def inward(x: Tensor, weight: Stack, bias: Tensor | None, to: Assignments) -> Tensor:
    """The first product of each row's experts: [rows, inputs] → [rows × used, outputs], sorted by expert.

    Args:
        weight: [experts, outputs, inputs], floats or MXFP4.
        bias: [experts, outputs].
    """
    y = torch.empty((len(to.order), weight.shape[1]), dtype=x.dtype, device=x.device)
    return _launch(x, weight, bias, y, to, y, True)


def outward(x: Tensor, weight: Stack, bias: Tensor | None, to: Assignments, shares: Tensor) -> Tensor:
    """The last product of experts, summed up: [rows × used, inputs], sorted by expert → [rows, outputs].

    Args:
        weight, bias: as of `inward`.
        shares: float32 [rows, used], what each expert's product is multiplied by.
    """
    parts = torch.empty((len(to.order), weight.shape[1]), dtype=torch.float32, device=x.device)
    _launch(x, weight, bias, parts, to, shares, False)
    y = torch.empty((len(shares), weight.shape[1]), dtype=x.dtype, device=x.device)
    _mix[(len(y), -(-y.shape[1] // _MIXED))](
        parts, y, SIZE=y.shape[1], USED=to.used, TILE=_MIXED, num_warps=4, **launch_options(x.device)
    )
    return y
