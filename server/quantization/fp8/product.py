"""Products of quantized rows with weights in FP8, by FP8 units.

Scales are of rows and outputs, or of 128 inputs of a row and of 128 × 128 weights (DeepSeek-V3, 2024): FP8
units sum up what shares its scales, and the sums of different scales are added in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import fetch_ahead, launch_options
from server.quantization.fp8.rows import Rows
from server.quantization.fp8.scheme import BLOCK


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is divided.

    Attributes:
        rows, columns: of a program's tile of the result; `columns` divides 128.
        warps, stages: of a program, and tiles of inputs that it reads ahead, the current one included.
    """

    rows: int
    columns: int
    warps: int = 4
    stages: int = 4


_FEW, _SOME = 64, 128
"""Rows of one tile, and of two."""
_WIDE = 16_384
"""Outputs from which on tiles of 128 of them are as many as a data-centre GPU can run at once."""
_DEPTH = 128
_AHEAD = 1024
"""Inputs whose weights are asked for before the kernel in front has ended."""


@triton.jit
def _scale_of(x_scales, scales, m, present, part, K: tl.constexpr, BLOCK: tl.constexpr):
    """Of a block of weights and the same inputs of rows."""
    of_rows = tl.load(x_scales + m * (K // BLOCK) + part, mask=present, other=0.0)
    return of_rows * tl.load(scales + part)


@triton.jit(do_not_specialize=["M"])  # or each alignment of it would be compiled while serving
def _product(
    x, x_scales, weight, scales, bias, residual, y, M,
    N: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of rows, tile of outputs). BLOCK: inputs that share a scale; COLUMNS divides it."""
    first = tl.program_id(1) * COLUMNS
    if PDL:
        gdc_launch_dependents()
        line = tl.arange(0, COLUMNS * AHEAD // 128)
        row, begin = first + line % COLUMNS, line // COLUMNS * 128
        fetch_ahead(weight + row.to(tl.int64) * K + begin, (row < N) & (begin < K))
        gdc_wait()
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n = first + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    present, wanted = m < M, n < N
    x_at = x + m.to(tl.int64)[:, None] * K + k[None, :]
    w_at = weight + n.to(tl.int64)[None, :] * K + k[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, K, DEPTH):
        within = k < K - begin
        a = tl.load(x_at + begin, mask=present[:, None] & within[None, :], other=0.0)
        b = tl.load(w_at + begin, mask=within[:, None] & wanted[None, :], other=0.0)
        if BLOCK > 0:
            of_block = scales + (first // BLOCK) * (K // BLOCK)
            scale = _scale_of(x_scales, of_block, m, present, begin // BLOCK, K, BLOCK)
            total += tl.dot(a, b) * scale[:, None]
        else:
            total = tl.dot(a, b, total)
    if BLOCK == 0:
        of_rows = tl.load(x_scales + m, mask=present, other=0.0)
        total *= of_rows[:, None] * tl.load(scales + n, mask=wanted, other=0.0)[None, :]
    if bias is not None:
        total += tl.load(bias + n, mask=wanted, other=0.0).to(tl.float32)[None, :]
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    mask = present[:, None] & wanted[None, :]
    if residual is not None:
        total += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=mask)


def pays(rows: int, outputs: int) -> bool:
    """Whether this kernel is faster than torch's for scales by row and output, as measured on an H200."""
    return rows <= (_SOME if outputs < _WIDE else _FEW)


def tiling(rows: int, outputs: int, block: int | None) -> Tiling:
    """From `benchmarks.gpu.fp8` on an H200: narrow tiles, until there are enough of wide ones."""
    if rows <= _FEW:
        return Tiling(64, 128, stages=4) if outputs >= _WIDE else Tiling(64, 32, stages=6)
    return Tiling(64, 64) if pays(rows, outputs) and block is None else Tiling(64, BLOCK)


def product(
    rows: Rows,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    block: int | None = None,
    residual: Tensor | None = None,
    shape: Tiling | None = None,
) -> Tensor:
    """Quantized rows times a weight: [rows, outputs] of `dtype`.

    Args:
        rows: with scales of 128 numbers if `block`, of whole rows otherwise.
        weight: float8 [outputs, inputs], sizes multiples of 16, with blocks of 128.
        scales: float32 [outputs / 128, inputs / 128] if `block`, or one for each output.
        bias: [outputs].
        block: 128, or None.
        residual: [rows, outputs], contiguous; is added and then holds the result.
        shape: another than the number of rows calls for.
    """
    count, (outputs, inputs) = len(rows.numbers), weight.shape
    if shape is None:
        shape = tiling(count, outputs, block)
    y = residual
    if y is None:
        y = torch.empty((count, outputs), dtype=dtype, device=weight.device)
    _product[-(-count // shape.rows), -(-outputs // shape.columns)](
        rows.numbers, rows.scales, weight, scales, bias, residual, y, count,
        N=outputs, K=inputs, BLOCK=block or 0, ROWS=shape.rows, COLUMNS=shape.columns, DEPTH=_DEPTH,
        AHEAD=_AHEAD, num_warps=shape.warps, num_stages=shape.stages, **launch_options(weight.device),
    )  # fmt: skip
    return y
