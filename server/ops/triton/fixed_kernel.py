"""The kernels of `fixed_product`: for few rows with groups of inputs side by side, for many in turn."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.ops.triton.norm import inverse_rms


@triton.jit
def _weight_tile(at, inside, k, K, WHOLE: tl.constexpr):
    if WHOLE:
        return tl.load(at, eviction_policy="evict_first")
    return tl.load(at, mask=inside[:, None] & (k < K)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _fetch_ahead(at, n, begin, N, K, OUTPUTS: tl.constexpr):
    """Ask for what follows the first tile of weights, up to 256 inputs, to be brought to the L2 cache."""
    i = tl.arange(0, 4 * OUTPUTS)
    row, k = n + i % OUTPUTS, begin + i // OUTPUTS * 64
    place = tl.where((row < N) & (k < K), row.to(tl.int64) * K + k, 0)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at + place], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _row_tile(x_at, norm, present, k, K, scale, NORM: tl.constexpr):
    """Rows of x at inputs `k`, rounded as `rms_norm` does where NORM says so."""
    value = tl.load(x_at, mask=present[:, None] & (k < K)[None, :], other=0.0)
    if NORM:
        weight = tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)
        rounded = (value.to(tl.float32) * scale).to(value.dtype).to(tl.float32)
        value = (rounded * weight[None, :]).to(value.dtype)
    return value


@triton.jit
def _gate(gate, up, dtype: tl.constexpr):
    """``silu(gate) · up``, of what is rounded to `dtype` before."""
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _finish(
    total,
    up,
    bias,
    y,
    m,
    n,
    rows,
    N,
    y_stride,
    BIASED: tl.constexpr,
    GATED: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
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
def in_parts(
    x, norm, weight, bias, y, partials, arrivals, eps, rows, N, K, group, x_stride, y_stride,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, GROUPS: tl.constexpr,
    NORM: tl.constexpr, BIASED: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of outputs, group of inputs, tile of rows).

    NORM, if not 0, is a power of two that holds all inputs of the only row, which is normalised here.
    GATED: rows n and n + N of the weight are gate and up of output n. The first weights do not wait for the
    kernel in front.
    """
    if PDL:
        gdc_launch_dependents()
    tile, part = tl.program_id(0), tl.program_id(1)
    n = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    m = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    begin = part * group
    end = tl.minimum(begin + group, K)
    k = begin + tl.arange(0, DEPTH)
    inside, present = n < N, m < rows
    w_at = weight + n[:, None].to(tl.int64) * K + k[None, :]
    up_at = w_at + N.to(tl.int64) * K
    w = _weight_tile(w_at, inside, k, K, WHOLE)
    if GATED:
        w_up = _weight_tile(up_at, inside, k, K, WHOLE)
    if PDL:  # memory shall not rest while the kernel in front ends
        _fetch_ahead(weight, tile * OUTPUTS, begin, N, K, OUTPUTS)
        if GATED:
            _fetch_ahead(weight + N.to(tl.int64) * K, tile * OUTPUTS, begin, N, K, OUTPUTS)
        gdc_wait()
    scale = 1.0
    if NORM > 0:
        i = tl.arange(0, NORM)
        scale = inverse_rms(tl.load(x + i, mask=i < K, other=0.0).to(tl.float32), K, eps)
    x_at = x + m.to(tl.int64)[:, None] * x_stride + k[None, :]
    value = _row_tile(x_at, norm, present, k, K, scale, NORM > 0).trans()
    total = tl.dot(w, value, tl.zeros((OUTPUTS, ROWS), tl.float32))
    up = total
    if GATED:
        up = tl.dot(w_up, value, tl.zeros((OUTPUTS, ROWS), tl.float32))
    for step in range(DEPTH, end - begin, DEPTH):
        w = _weight_tile(w_at + step, inside, k + step, K, WHOLE)
        value = _row_tile(x_at + step, norm, present, k + step, K, scale, NORM > 0).trans()
        total = tl.dot(w, value, total)
        if GATED:
            up = tl.dot(_weight_tile(up_at + step, inside, k + step, K, WHOLE), value, up)
    total, up = total.trans(), up.trans()
    if GROUPS > 1:
        width = N * (2 if GATED else 1)
        place = partials + m.to(tl.int64)[:, None] * width + n[None, :]
        size = rows.to(tl.int64) * width
        exists = present[:, None] & inside[None, :]
        tl.store(place + part * size, total, mask=exists)
        if GATED:
            tl.store(place + part * size + N, up, mask=exists)
        tl.debug_barrier()  # all of the tile is written before its arrival is told
        counter = arrivals + tl.program_id(2) * tl.num_programs(0) + tile
        if tl.atomic_add(counter, 1, sem="acq_rel") == GROUPS - 1:
            total = tl.zeros((ROWS, OUTPUTS), tl.float32)
            up = total
            for other in tl.static_range(GROUPS):
                total += tl.load(place + other * size, mask=exists, other=0.0, cache_modifier=".cg")
                if GATED:
                    up += tl.load(place + other * size + N, mask=exists, other=0.0, cache_modifier=".cg")
            _finish(total, up, bias, y, m, n, rows, N, y_stride, BIASED, GATED, RESIDUAL)
            tl.store(counter, 0)
    else:
        _finish(total, up, bias, y, m, n, rows, N, y_stride, BIASED, GATED, RESIDUAL)


@triton.jit(do_not_specialize=["rows"])
def in_turn(
    x, weight, bias, y, rows, N, K, group, y_stride,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, WEIGHT_FIRST: tl.constexpr,
    SPLIT: tl.constexpr, BIASED: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of outputs and of rows); x and weight are descriptors of tiles.

    Programs that run at the same time share rows and outputs: eight tiles of rows go with each of outputs.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row_tiles, tiles = tl.cdiv(rows, ROWS), tl.cdiv(N, OUTPUTS)
    program = tl.program_id(0)
    first = program // (8 * tiles) * 8
    beside = tl.minimum(row_tiles - first, 8)
    row0 = (first + program % (8 * tiles) % beside) * ROWS
    output0 = program % (8 * tiles) // beside * OUTPUTS
    acc = tl.zeros((OUTPUTS if WEIGHT_FIRST else ROWS, ROWS if WEIGHT_FIRST else OUTPUTS), tl.float32)
    up, total, total_up = acc, acc, acc
    for k in range(0, K, DEPTH):
        w, value = weight.load([output0, k]), x.load([row0, k])
        if WEIGHT_FIRST:
            acc = tl.dot(w, value.trans(), acc)
            if GATED:
                up = tl.dot(weight.load([N + output0, k]), value.trans(), up)
        else:
            acc = tl.dot(value, w.trans(), acc)
        if SPLIT:  # noqa: SIM102 - known when compiling, which the next is not
            if (k + DEPTH) % group == 0:
                total += acc
                acc = tl.zeros_like(acc)
                if GATED:
                    total_up += up
                    up = tl.zeros_like(up)
    if SPLIT:
        acc += total
        up += total_up
    if WEIGHT_FIRST:
        acc, up = acc.trans(), up.trans()
    m, n = row0 + tl.arange(0, ROWS), output0 + tl.arange(0, OUTPUTS)
    _finish(acc, up, bias, y, m, n, rows, N, y_stride, BIASED, GATED, RESIDUAL)
