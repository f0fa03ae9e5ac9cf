"""Products of 2 to 128 rows: weights read at the memory's bandwidth, what stands behind fused in.

Matrix units take 64 lines on one side and as few as 16 on the other: outputs are the lines. Each program asks
for its first weights before it waits for the kernel in front, as `server.quantization.gemv` does for one row;
products of cuBLAS neither begin early nor let the next kernel do so. Where there are fewer tiles of outputs
than multiprocessors, programs divide the inputs; the last of a tile adds up what all have written down, in
their order.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents
from triton.tools.tensor_descriptor import TensorDescriptor

from server.device.triton_support import gpu_of, launch_options
from server.ops.triton.gates import gated_value
from server.ops.triton.tiled_products import suits

ROW_TILES = (16, 32, 64, 128)
"""Rows that are computed: the next of these, the rest is padding. Each has compiled kernels of its own."""
MOST_ROWS = ROW_TILES[-1]
MOST_OUTPUTS = 24_576
"""Of a product that is not gated: the rule was measured on layers, and an output layer mostly has more."""
_LINES = 64
"""Outputs of a program; where gate and up are joined, of each."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How a product is cut up.

    Attributes:
        depth: inputs that a program multiplies at a time.
        stages: of the software pipeline, each with a tile of weights and one of inputs in shared memory.
        parts: of the inputs, each of a program of its own.
    """

    depth: int
    stages: int
    parts: int = 1


@triton.jit
def _once_in_front_ended(k, PDL: tl.constexpr):
    """`k`, once the kernel in front has ended.

    The wait hides in a number that places of inputs depend on and places of weights do not. So the compiler,
    which asks for the first tiles ahead of the loop, asks for weights before it. Later waits cost nothing.
    """
    if PDL:
        k = tl.inline_asm_elementwise(
            "griddepcontrol.wait; mov.b32 $0, $1;", "=r,r", [k], dtype=tl.int32, is_pure=True, pack=1
        )
    return k


@triton.jit
def _added_up(sums, first, m, i, rows, ROWS: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """float32 [rows, lines]: lines `i` of the parts from `first` on, added up."""
    at = sums + (first * ROWS + m)[:, None] * WIDTH + i[None, :]
    total = tl.zeros(at.shape, tl.float32)
    for part in tl.static_range(PARTS):
        # past the first-level cache, which knows nothing of other multiprocessors' stores
        stored = tl.load(
            at + part * (ROWS * WIDTH), mask=(m < rows)[:, None], other=0.0, cache_modifier=".cg"
        )
        total += stored
    return total


@triton.jit
def _finish(out, up, bias, residual, y, m, n, rows, N: tl.constexpr, GATED: tl.constexpr):
    """Store sums [rows, outputs]: with bias, gate and residual."""
    inside = n < N
    if bias is not None:
        out += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)[None, :]
    if GATED:
        if bias is not None:
            up += tl.load(bias + N + n, mask=inside, other=0.0).to(tl.float32)[None, :]
        out = gated_value(out, up, 1.0, None)
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    mask = (m < rows)[:, None] & inside[None, :]
    if residual is not None:
        out += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _few_rows(
    x, weight, bias, residual, y, sums, arrivals, rows,
    N: tl.constexpr, ROWS: tl.constexpr, LINES: tl.constexpr, DEPTH: tl.constexpr, TILES: tl.constexpr,
    PARTS: tl.constexpr, STAGES: tl.constexpr, GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of outputs, part of the inputs); x and weight are descriptors of tiles, which have zeros
    where there is nothing. GATED: rows n and n + N of the weight are gate and up of output n."""
    if PDL:
        gdc_launch_dependents()
    program = tl.program_id(0)
    tile, begin = program // PARTS, program % PARTS * (DEPTH * TILES)
    output = tile * LINES
    total = tl.zeros([LINES, ROWS], tl.float32)
    up = total
    for t in tl.range(TILES, num_stages=STAGES):
        k = begin + t * DEPTH
        w = weight.load([output, k])
        if GATED:
            w_up = weight.load([N + output, k])
        value = x.load([0, _once_in_front_ended(k, PDL)]).trans()
        total = tl.dot(w, value, total)
        if GATED:
            up = tl.dot(w_up, value, up)
    m, i = tl.arange(0, ROWS), tl.arange(0, LINES)
    if PARTS == 1:
        _finish(total.trans(), up.trans(), bias, residual, y, m, output + i, rows, N, GATED)
    else:
        WIDTH: tl.constexpr = 2 * LINES if GATED else LINES
        at = sums + (program * ROWS + m)[None, :] * WIDTH + i[:, None]
        tl.store(at, total, mask=(m < rows)[None, :])
        if GATED:
            tl.store(at + LINES, up, mask=(m < rows)[None, :])
        tl.debug_barrier()  # every thread has stored before one of them says so
        if tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == PARTS - 1:
            tl.store(arrivals + tile, 0)
            first = tile * PARTS
            out = _added_up(sums, first, m, i, rows, ROWS, WIDTH, PARTS)
            other = _added_up(sums, first, m, LINES + i, rows, ROWS, WIDTH, PARTS) if GATED else out
            _finish(out, other, bias, residual, y, m, output + i, rows, N, GATED)


def takes(x: Tensor, weight: Tensor, *, gated: bool = False) -> bool:
    """Whether this is the faster product: of 16 bits, on Hopper.

    With more than 32 rows cuBLAS is as fast for weights of few outputs (`benchmarks.gpu.divisions`).
    """
    rows, outputs = len(x), len(weight)
    wanted = gated or (4_096 if rows > 32 else 0) <= outputs <= MOST_OUTPUTS
    return 1 < rows <= MOST_ROWS and wanted and suits(x, weight)


def cut_for(rows: int, outputs: int, inputs: int, *, gated: bool, multiprocessors: int) -> Cut:
    """From `benchmarks.gpu.divisions` on an H200.

    Up to 32 rows a program fills most of a multiprocessor's shared memory. With up to 64, two share one. With
    more, they do where there are more tiles than multiprocessors.
    """
    tiles = -(-outputs // _LINES)
    if gated:
        if rows > 64:
            return Cut(64, 6 if tiles <= multiprocessors else 3)
        return Cut(128, 4 if rows <= 32 else 3)
    depth, stages, programs, least = (256, 3, 1, 1_024) if rows <= 32 else (128, 3, 2, 2_048)
    if rows > 64:
        depth, stages, programs, least = 64, 6, 1, 4_096
    parts = 1
    while 2 * parts * tiles <= programs * multiprocessors and inputs >= 2 * parts * least:
        parts *= 2
    return Cut(depth, stages, parts)


@functools.cache
def _arrivals(device: torch.device) -> Tensor:
    """int32, for each tile: parts that have ended; 0 between launches, which follow each other."""
    return torch.zeros(MOST_OUTPUTS // _LINES, dtype=torch.int32, device=device)


def few_rows(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    gated: bool = False,
    residual: Tensor | None = None,
    cut: Cut | None = None,
) -> Tensor:
    """Some tokens times a weight.

    Args:
        x: [rows, inputs], contiguous, `MOST_ROWS` at most.
        weight: [outputs, inputs], contiguous, inputs a multiple of 8.
        bias: [outputs].
        gated: the weight stacks gate and up, each of half its rows; the result is silu(gate) · up.
        residual: [rows, outputs], is added and then holds the result.
        cut: another than `cut_for` says.

    Returns:
        [rows, outputs] ([rows, outputs / 2] if `gated`).
    """
    (rows, inputs), outputs = x.shape, len(weight) // (2 if gated else 1)
    if cut is None:
        count = gpu_of(x.device).multiprocessors
        cut = cut_for(rows, outputs, inputs, gated=gated, multiprocessors=count)
    y = residual
    if y is None:
        y = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    padded, tiles = next(tile for tile in ROW_TILES if rows <= tile), -(-outputs // _LINES)
    sums, arrivals = None, None
    if cut.parts > 1:
        size = (tiles * cut.parts, padded, len(weight) // outputs * _LINES)
        sums, arrivals = torch.empty(size, dtype=torch.float32, device=x.device), _arrivals(x.device)
    _few_rows[(tiles * cut.parts,)](
        TensorDescriptor.from_tensor(x, [padded, cut.depth]),
        TensorDescriptor.from_tensor(weight, [_LINES, cut.depth]),
        bias, residual, y, sums, arrivals, rows,
        N=outputs, ROWS=padded, LINES=_LINES, DEPTH=cut.depth, TILES=-(-inputs // (cut.depth * cut.parts)),
        PARTS=cut.parts, STAGES=cut.stages, GATED=gated, num_warps=4, **launch_options(x.device),
    )  # fmt: skip
    return y
