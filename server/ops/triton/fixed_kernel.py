"""The kernels of `fixed_product`: for one row, and for any number of rows."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.ops.triton.norm import inverse_rms


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


@triton.jit
def _fetch_ahead(at, n, N, K, OUTPUTS: tl.constexpr, AHEAD: tl.constexpr):
    """Ask for the first AHEAD inputs of weights to be brought to the L2 cache."""
    i = tl.arange(0, OUTPUTS * AHEAD // 64)
    row, k = n + i % OUTPUTS, i // OUTPUTS * 64
    place = tl.where((row < N) & (k < K), row.to(tl.int64) * K + k, 0)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at + place], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _weights(at, inside, k, K, WHOLE: tl.constexpr):
    """[inputs, outputs]."""
    if WHOLE:
        return tl.load(at, eviction_policy="evict_first").trans()
    return tl.load(
        at, mask=inside[:, None] & (k < K)[None, :], other=0.0, eviction_policy="evict_first"
    ).trans()


@triton.jit
def product_of_one(
    x, norm, weight, bias, y, eps, N, K,
    OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, AHEAD: tl.constexpr, WHOLE: tl.constexpr,
    NORM: tl.constexpr, BIASED: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of outputs). The row stands in all 64 lines that the matrix units take.

    NORM, if not 0, is a power of two that holds all inputs, which are normalised here, rounded as `rms_norm`
    does. GATED: rows n and n + N of the weight are gate and up of output n. Memory shall not rest while the
    kernel in front ends.
    """
    if PDL:
        gdc_launch_dependents()
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.arange(0, DEPTH)
    inside = n < N
    w_at = weight + n[:, None].to(tl.int64) * K + k[None, :]
    up_at = w_at + N.to(tl.int64) * K
    if PDL:
        _fetch_ahead(weight, tl.program_id(0) * OUTPUTS, N, K, OUTPUTS, AHEAD)
        if GATED:
            _fetch_ahead(weight + N.to(tl.int64) * K, tl.program_id(0) * OUTPUTS, N, K, OUTPUTS, AHEAD)
        gdc_wait()
    scale = 1.0
    if NORM > 0:
        i = tl.arange(0, NORM)
        scale = inverse_rms(tl.load(x + i, mask=i < K, other=0.0).to(tl.float32), K, eps)
    total = tl.zeros((64, OUTPUTS), tl.float32)
    up = total
    for step in range(0, K, DEPTH):
        w = _weights(w_at + step, inside, k + step, K, WHOLE)
        value = tl.load(x + k + step, mask=k + step < K, other=0.0)
        if NORM > 0:
            factor = tl.load(norm + k + step, mask=k + step < K, other=0.0).to(tl.float32)
            rounded = (value.to(tl.float32) * scale).to(value.dtype).to(tl.float32)
            value = (rounded * factor).to(value.dtype)
        lines = tl.broadcast_to(value[None, :], (64, DEPTH))
        total = tl.dot(lines, w, total)
        if GATED:
            up = tl.dot(lines, _weights(up_at + step, inside, k + step, K, WHOLE), up)
    _finish(total, up, bias, y, tl.arange(0, 64), n, 1, N, N, BIASED, GATED, RESIDUAL)


@triton.jit(do_not_specialize=["rows"])
def product_of_many(
    x, weight, bias, y, rows, N, K, y_stride,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
    BIASED: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of rows and of outputs); x and weight are descriptors of tiles.

    Programs that run at the same time share rows and outputs: eight tiles of rows go with each of outputs.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row_tiles, tiles = tl.cdiv(rows, ROWS), tl.cdiv(N, OUTPUTS)
    program = tl.program_id(0)
    first = program // (8 * tiles) * 8
    beside = tl.minimum(row_tiles - first, 8)
    row = (first + program % (8 * tiles) % beside) * ROWS
    output = program % (8 * tiles) // beside * OUTPUTS
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    up = total
    for k in range(0, K, DEPTH):
        value = x.load([row, k])
        total = tl.dot(value, weight.load([output, k]).trans(), total)
        if GATED:
            up = tl.dot(value, weight.load([N + output, k]).trans(), up)
    m, n = row + tl.arange(0, ROWS), output + tl.arange(0, OUTPUTS)
    _finish(total, up, bias, y, m, n, rows, N, y_stride, BIASED, GATED, RESIDUAL)
