"""Products of FP8 whose scales are of 128 inputs of a row, and of 128 × 128 weights (DeepSeek-V3, 2024).

FP8 units sum up what shares its scales; the sums of different scales are added in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options
from server.quantization.fp8.rows import Rows
from server.quantization.fp8.scheme import BLOCK

_FEW = 64
"""Rows up to which weights are divided finely, for they fill no machine otherwise."""


@triton.jit(do_not_specialize=["M"])  # or each alignment of it would be compiled while serving
def _product(
    x, x_scales, weight, scales, bias, y, M,
    N: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of rows, tile of outputs). COLUMNS divides BLOCK."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * COLUMNS
    n = first + tl.arange(0, COLUMNS)
    k = tl.arange(0, BLOCK)
    present, wanted = m < M, n < N
    x_at = x + m.to(tl.int64)[:, None] * K + k[None, :]
    w_at = weight + n.to(tl.int64)[None, :] * K + k[:, None]
    scales += (first // BLOCK) * (K // BLOCK)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for part in range(K // BLOCK):
        a = tl.load(x_at + part * BLOCK, mask=present[:, None], other=0.0)
        b = tl.load(w_at + part * BLOCK, mask=wanted[None, :], other=0.0)
        scale = tl.load(x_scales + m * (K // BLOCK) + part, mask=present, other=0.0) * tl.load(scales + part)
        total += tl.dot(a, b) * scale[:, None]
    if bias is not None:
        total += tl.load(bias + n, mask=wanted, other=0.0).to(tl.float32)[None, :]
    at = y + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(at, total.to(y.dtype.element_ty), mask=present[:, None] & wanted[None, :])


def product(rows: Rows, weight: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Quantized rows times a weight: [rows, outputs] of `dtype`.

    Args:
        rows: their scales are of 128 numbers.
        weight: float8 [outputs, inputs], sizes multiples of 128.
        scales: float32 [outputs / 128, inputs / 128].
        bias: [outputs].
    """
    count, (outputs, inputs) = len(rows.numbers), weight.shape
    y = torch.empty((count, outputs), dtype=dtype, device=weight.device)
    columns = 32 if count <= _FEW else BLOCK
    grid = (-(-count // 64), outputs // columns)
    _product[grid](
        rows.numbers, rows.scales, weight, scales, bias, y, count,
        N=outputs, K=inputs, BLOCK=BLOCK, ROWS=64, COLUMNS=columns,
        num_warps=4, num_stages=4, **launch_options(weight.device),
    )  # fmt: skip
    return y
