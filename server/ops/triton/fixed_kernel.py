"""The kernels of `fixed_product`: for few rows, and for any number of them."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.ops.triton.tiled_products import place_of


@triton.jit
def _gate(gate, up, dtype: tl.constexpr):
    """``silu(gate) · up``, of what is rounded to `dtype` before."""
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _finish(
    total, up, bias, y, m, n, rows, N, y_stride,
    BIASED: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Store [rows, outputs] sums: with bias, gate and residual."""
    inside = n < N
    if BIASED:
        total += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)[None, :]
    if GATED:
        if BIASED:
            up += tl.load(bias + N + n, mask=inside, other=0.0).to(tl.float32)[None, :]
        total = _gate(total, up, y.dtype.element_ty)
    at = y + m.to(tl.int64)[:, None] * y_stride + n[None, :]
    exists = (m < rows)[:, None] & inside[None, :]
    if RESIDUAL:
        total += tl.load(at, mask=exists, other=0.0).to(tl.float32)
    tl.store(at, total.to(y.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["rows"])
def product_of_few(
    x, weight, bias, y, rows, N, K, y_stride,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
    BIASED: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of outputs, tile of rows); x and weight are descriptors of tiles.

    Matrix units take 64 lines on one side and as few as 16 on the other: here outputs are the lines.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    output, row = tl.program_id(0) * OUTPUTS, tl.program_id(1) * ROWS
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    up = total
    for k in range(0, K, DEPTH):
        value = x.load([row, k]).trans()
        total = tl.dot(weight.load([output, k]), value, total)
        if GATED:
            up = tl.dot(weight.load([N + output, k]), value, up)
    m, n = row + tl.arange(0, ROWS), output + tl.arange(0, OUTPUTS)
    _finish(total.trans(), up.trans(), bias, y, m, n, rows, N, y_stride, BIASED, GATED, RESIDUAL)


@triton.jit(do_not_specialize=["rows"])
def product_of_many(
    x, weight, bias, y, rows, N, K, y_stride,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
    BIASED: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of rows and of outputs); x and weight are descriptors of tiles."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row, output = place_of(tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(N, OUTPUTS))
    row, output = row * ROWS, output * OUTPUTS
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    up = total
    for k in range(0, K, DEPTH):
        value = x.load([row, k])
        total = tl.dot(value, weight.load([output, k]).trans(), total)
        if GATED:
            up = tl.dot(value, weight.load([N + output, k]).trans(), up)
    m, n = row + tl.arange(0, ROWS), output + tl.arange(0, OUTPUTS)
    _finish(total, up, bias, y, m, n, rows, N, y_stride, BIASED, GATED, RESIDUAL)
