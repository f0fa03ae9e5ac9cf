"""Products with many matrices, each on the rows that are sent to it; the host does not look how many."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options
from server.layers.microscaled import Microscaled
from server.ops.triton.expert_weights import Stack, arguments, load_weights
from server.ops.triton.routing import Assignments
from server.quantization.gptq.kernels.triton_codes import SHRINKAGE


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


FEW, SOME, MORE, MANY = (
    Tiling(16, 64, 128, 4, 4), Tiling(32, 128, 64, 4, 4), Tiling(64, 64, 64, 4, 3), Tiling(128, 128, 64, 8, 3)
)  # fmt: skip
"""Where experts get few rows, so that reading weights is all that counts; some; more; and many, of long
prompts. From `benchmarks.gpu.tune_experts` on an H200."""
_SOME_ROWS, _MORE_ROWS, _MANY_ROWS = 12, 48, 256
"""Rows that an expert gets on average, from which on there are some, more, or many."""
_WHOLE_BLOCKS = 128
"""Inputs that are taken at once where so many have scales in common, or are packed together."""
_MIXED = 1024
"""Columns of a program that adds up."""


def tiling_of(rows_each: float, stack: Stack) -> Tiling:
    """For so many rows of an expert, on average."""
    if rows_each < _SOME_ROWS:
        return FEW
    if rows_each < _MORE_ROWS:
        chosen = SOME
    else:  # float32, of twice the bytes, finds no room for the largest tiles
        chosen = MORE if rows_each < _MANY_ROWS or stack.dtype == torch.float32 else MANY
    return chosen if isinstance(stack, Tensor | Microscaled) else replace(chosen, depth=_WHOLE_BLOCKS)


@triton.jit
def _product(
    x, weight, scales, reordered, bias, y, order, begins, ends, first_tiles, experts, shares, x_stride,
    COUNT: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, USED: tl.constexpr,
    PRECISION: tl.constexpr, FORM: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
    SCALES: tl.constexpr, WAY: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of rows, tile of outputs).

    Without `shares`, rows of x are tokens and those of y are sorted by expert; otherwise rows of x are sorted
    and those of y are choices of tokens, each times its share. `reordered`: which input stands at a place of
    an expert's matrix; null: the places are those of x.
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
    first = tl.program_id(1) * COLUMNS
    n = first + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    wanted = n < OUTPUTS
    x_at = x + source.to(tl.int64)[:, None] * x_stride
    # weights on the left, where matrix units take numbers that are made of codes from registers
    turned = tl.zeros((COLUMNS, ROWS), tl.float32)
    for begin in range(0, INPUTS, DEPTH):
        inside = k < INPUTS - begin
        column = begin + k
        if reordered is not None:
            column = tl.load(reordered + expert * INPUTS + column, mask=inside, other=0)
        a = tl.load(x_at + column[None, :], mask=present[:, None] & inside[None, :], other=0.0)
        w = load_weights(
            weight, scales, expert, n, begin, wanted, x.dtype.element_ty, INPUTS, OUTPUTS, DEPTH,
            FORM, BITS, GROUP, SCALES, WAY,
        )  # fmt: skip
        if BLOCK > 0:
            block = (expert * (OUTPUTS // BLOCK) + first // BLOCK) * (INPUTS // BLOCK) + begin // BLOCK
            turned += tl.dot(w, tl.trans(a), input_precision=PRECISION) * tl.load(scales + block)
        else:
            turned = tl.dot(w, tl.trans(a), turned, input_precision=PRECISION)
    total = tl.trans(turned)
    if WAY == "shrunk":
        total *= 1.0 / SHRINKAGE
    if FORM == "scaled" and BLOCK == 0:
        total *= tl.load(scales + expert * OUTPUTS + n, mask=wanted, other=0.0)[None, :]
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
    stored, scales, reordered, constants = arguments(weight)
    _product[len(to.experts), -(-outputs // by.columns)](
        x, stored, scales, reordered, bias, y, to.order, to.begins, to.ends, to.first_tiles, to.experts,
        shares, x.stride(0),
        COUNT=count, INPUTS=inputs, OUTPUTS=outputs, USED=to.used,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        ROWS=to.tile, COLUMNS=by.columns, DEPTH=by.depth, num_warps=by.warps, num_stages=by.stages,
        **constants, **launch_options(x.device),
    )  # fmt: skip


def inward(x: Tensor, weight: Stack, bias: Tensor | None, to: Assignments, by: Tiling) -> Tensor:
    """The first product of each row's experts: [rows, inputs] → [rows × used, outputs], sorted by expert.

    Args:
        weight: [experts, outputs, inputs], in any form that `arguments` knows.
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
