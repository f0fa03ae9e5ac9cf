# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The product of some rows with a quantized weight, in one Triton kernel.

It computes ``yᵀ = W xᵀ``: Hopper's matrix units take their left operand from registers, where codes have
just become weights, and the right one, x, from shared memory, as the copy brought it there. So weights
pass through shared memory as codes only, and the units multiply one piece while the next is dequantized.
Machete (Neural Magic, 2024) works so. On earlier GPUs the same code compiles to their matrix units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents

from server.device.triton_support import INTERPRETED, Gpu, gpu_of, overlaps_launches
from server.quantization.gptq.kernels.triton_codes import (
    PIECE,
    SHRINKAGE,
    factors_at,
    paired_weights_of,
    shrunk_weights_of,
    triton_type,
    weights_of,
)

OUTPUTS = 128
"""Outputs of a program's tile."""
MAX_PARTS = 8
COUNTERS = 1024
"""Tiles of a product at most whose inputs are in parts; many tiles need none."""


@triton.jit
def _product_kernel(
    x, words, factors, y, partials, arrivals, M, N, K,
    BITS: tl.constexpr, GROUP: tl.constexpr, SCALES: tl.constexpr, WAY: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, STAGES: tl.constexpr,
    PARTS: tl.constexpr, WHOLE: tl.constexpr, RESIDUAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of outputs, part of the inputs, tile of rows).

    With several PARTS the program that is last to arrive at a tile adds them up, in their order: results
    do not depend on which that is. WAY: which function makes the weights. WHOLE: outputs are a multiple of
    the tile. RESIDUAL: the product is added to y. PDL: the next kernel may be launched at once; this one
    itself must not be launched so. Its programs are few and long, and would crowd on the multiprocessors
    that have room while the kernel in front still runs (a step of one row took 3.54 ms so, now 2.74).
    """
    dtype: tl.constexpr = x.dtype.element_ty
    tile, part, row_tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    m = row_tile * ROWS + tl.arange(0, ROWS)
    inside = tl.full((OUTPUTS,), True, tl.int1) if WHOLE else n < N
    word_at = words + n[:, None] * (4 * BITS) + tl.arange(0, 4 * BITS)[None, :]
    x_at = x + m.to(tl.int64)[:, None] * K + tl.arange(0, 128)[None, :]
    first, last = part * (K // 128) // PARTS, (part + 1) * (K // 128) // PARTS
    if PDL:
        gdc_launch_dependents()
    stride = tl.cast(N, tl.int64) * (4 * BITS)
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for piece in tl.range(first, last, num_stages=STAGES):
        packed = tl.load(word_at + piece * stride, mask=inside[:, None], other=0)
        values = tl.load(x_at + piece * 128, mask=(m < M)[:, None], other=0.0)
        factor = factors_at(factors, piece, n, inside, N, GROUP)
        if WAY == "shrunk":
            weight = shrunk_weights_of(packed, factor, SCALES)
        elif WAY == "paired":
            weight = paired_weights_of(packed, factor, SCALES, dtype)
        else:
            weight = weights_of(packed, factor, BITS, SCALES, dtype, False)
        total = tl.dot(weight, values.trans(), total)
    if WAY == "shrunk":
        total *= 1.0 / SHRINKAGE
    total = total.trans()
    place = m.to(tl.int64)[:, None] * N + n[None, :]
    exists = (m < M)[:, None] & inside[None, :]
    if PARTS > 1:
        size = tl.cast(N, tl.int64) * M
        tl.store(partials + part * size + place, total, mask=exists)
        tl.debug_barrier()  # all of the tile is written before its arrival is told
        counter = arrivals + row_tile * tl.num_programs(0) + tile
        if tl.atomic_add(counter, 1, sem="acq_rel") == PARTS - 1:
            total = tl.zeros((ROWS, OUTPUTS), tl.float32)
            for other in tl.static_range(PARTS):
                total += tl.load(partials + other * size + place, mask=exists, cache_modifier=".cg")
            _store(total, y + place, exists, RESIDUAL)
            tl.store(counter, 0)
    else:
        _store(total, y + place, exists, RESIDUAL)


@triton.jit
def _store(total, at, exists, RESIDUAL: tl.constexpr):
    if RESIDUAL:
        total += tl.load(at, mask=exists, other=0.0).to(tl.float32)
    tl.store(at, total.to(at.dtype.element_ty), mask=exists)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut up.

    Attributes:
        rows, outputs: of a program's tile.
        parts: of the inputs, a program each.
        stages: pieces of the inputs under way to shared memory at the same time.
        warps: of a program.
    """

    rows: int
    outputs: int
    parts: int
    stages: int
    warps: int


def tiling(rows: int, outputs: int, inputs: int, bits: int, gpu: Gpu) -> Tiling:
    """The tiling for a product, as `benchmarks.gpu.tune_gptq` finds it on an H100.

    Few rows wait for memory: several programs a multiprocessor, and the inputs cut into as many parts
    as that takes. Many rows wait for the matrix units, which one program keeps busy.
    """
    tiles, most = triton.cdiv(outputs, OUTPUTS), gpu.multiprocessors
    if rows <= 32:
        tile_rows, stages, warps, programs = (16 if rows <= 16 else 32), 4, 4, 3 * most
    elif rows <= 64:
        tile_rows, stages, warps, programs = 64, 4, 8, 3 * most // 2
    elif rows <= 128 or tiles < most:
        tile_rows, stages, warps, programs = 128, 4, 8, most
    else:
        tile_rows, stages, warps, programs = 256, 3, 8, most
    while stages > 2 and stages * stage_bytes(tile_rows, OUTPUTS, bits) > gpu.shared:
        stages -= 1
    while stages * stage_bytes(tile_rows, OUTPUTS, bits) > gpu.shared:
        tile_rows //= 2
    tiles *= triton.cdiv(rows, tile_rows)
    pieces = inputs // PIECE
    parts = 1
    while 2 * parts * tiles <= programs and parts < MAX_PARTS and 8 * parts <= pieces:
        parts *= 2
    return Tiling(tile_rows, OUTPUTS, parts, stages, warps)


def stage_bytes(tile_rows: int, outputs: int, bits: int) -> int:
    """Shared memory of a piece of a tile: x, codes and up to four groups' factors."""
    return 2 * tile_rows * PIECE + outputs * (PIECE * bits // 8 + 16)


def product(
    x: Tensor,
    words: Tensor,
    factors: Tensor,
    bits: int,
    group_size: int,
    scales: torch.dtype,
    *,
    arrivals: Tensor,
    symmetric: bool,
    residual: Tensor | None = None,
    cut: Tiling | None = None,
) -> Tensor:
    """x [rows, inputs] times the weight: [rows, outputs] in the type of x.

    Args:
        x: contiguous, float16 or bfloat16.
        words, factors: packed.
        scales: in which type they were given.
        arrivals: int32 zeros, `COUNTERS` of them; they are zero again afterwards.
        symmetric: all zero points are in the middle of the codes.
        residual: contiguous [rows, outputs], is added and then holds the result.
        cut: another tiling than the usual one.
    """
    rows, inputs = x.shape
    outputs = words.shape[1]
    cut = cut or tiling(rows, outputs, inputs, bits, gpu_of(x.device))
    y = x.new_empty(rows, outputs) if residual is None else residual
    partials = x.new_empty((cut.parts, rows, outputs), dtype=torch.float32) if cut.parts > 1 else y
    tiles, row_tiles = triton.cdiv(outputs, cut.outputs), triton.cdiv(rows, cut.rows)
    assert cut.parts == 1 or tiles * row_tiles <= COUNTERS
    _product_kernel[(tiles, cut.parts, row_tiles)](
        x, words, factors, y, partials, arrivals, rows, outputs, inputs,
        BITS=bits, GROUP=group_size, SCALES=triton_type(scales), WAY=way(bits, x.dtype, symmetric),
        ROWS=cut.rows, OUTPUTS=cut.outputs, STAGES=cut.stages,
        PARTS=cut.parts, WHOLE=outputs % cut.outputs == 0, RESIDUAL=residual is not None,
        PDL=overlaps_launches(x.device), num_warps=cut.warps,
    )  # fmt: skip
    return y


def way(bits: int, dtype: torch.dtype, symmetric: bool) -> str:
    """The quickest way from codes to weights; the interpreter knows no instructions."""
    if bits != 4 or INTERPRETED:
        return "plain"
    return "shrunk" if symmetric and dtype == torch.bfloat16 else "paired"
