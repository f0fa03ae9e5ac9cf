"""The gated product of prompts: gate and up by the same programs, so that neither goes through memory.

A tile is 128 rows, 128 outputs of the gate and the same 128 of up, which matrix units take for 256 outputs:
both sums of an output are then in the registers of one thread. As many programs as there are multiprocessors
take one tile after another; while one writes a tile down, the first inputs of its next are under way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from server.device.triton_support import INTERPRETED, gpu_of, launch_options
from server.ops.triton.gates import gated_value
from server.ops.triton.tiled_products import place_of, suits

_ROWS, _OUTPUTS, _DEPTH, _STAGES = 128, 128, 64, 4
"""Of a tile: rows, outputs, inputs at a time; and how many of these are under way. They fill the shared
memory of a multiprocessor."""
_PASS = 256
"""Inputs of a product that take as long as the gate's own pass over memory, on an H200."""
_SIGMOID = tl.constexpr(
    "{ .reg .f32 e; mul.f32 e, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 e, e; add.f32 e, e, 0f3F800000;"
    " rcp.approx.ftz.f32 $0, e; }"
)
"""1 / (1 + 2^(-x · log2 e)) in four instructions. The compiler's own takes twice as many, for what is too
large or too small for normal numbers, and a multiprocessor waits for them behind every tile."""


@triton.jit
def _gated(gate, up, EXACT: tl.constexpr):
    """silu(gate) · up."""
    if EXACT:
        return gated_value(gate, up, 1.0, None)
    share = tl.inline_asm_elementwise(_SIGMOID, "=f,f", [gate], dtype=tl.float32, is_pure=True, pack=1)
    return gate * share * up


@triton.jit(do_not_specialize=["rows"])
def _gated_product(
    x, weight, y, rows,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
    STAGES: tl.constexpr, PROGRAMS: tl.constexpr, EXACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (first tile); x, weight and y are descriptors of tiles, with zeros where there is nothing."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    WIDE: tl.constexpr = (N + OUTPUTS - 1) // OUTPUTS
    high = tl.cdiv(rows, ROWS)
    for tile in tl.range(tl.program_id(0), high * WIDE, PROGRAMS, flatten=True):
        row, output = place_of(tile, high, WIDE)
        row, output = row * ROWS, output * OUTPUTS
        total = tl.zeros([ROWS, 2 * OUTPUTS], tl.float32)
        for k in tl.range(0, K, DEPTH, num_stages=STAGES):
            both = weight.load([0, output, k]).reshape(2 * OUTPUTS, DEPTH)
            total = tl.dot(x.load([row, k]), both.trans(), total)
        gate, up = total.reshape(ROWS, 2, OUTPUTS).permute(0, 2, 1).split()
        y.store([row, output], _gated(gate, up, EXACT).to(y.dtype))


def can_take(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel can compute the product: its results have rows of whole 16 bytes, too."""
    return len(weight) % 16 == 0 and suits(x, weight)


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether it is faster than a product of cuBLAS and the gate.

    Tiles have one size, so that some programs may have none at the end: less is lost by that than a pass over
    memory takes.
    """
    if not len(x) or not can_take(x, weight):
        return False
    programs = gpu_of(x.device).multiprocessors
    tiles = -(-len(x) // _ROWS) * -(-len(weight) // (2 * _OUTPUTS))
    return tiles >= (1.0 - _PASS / x.shape[1]) * programs * -(-tiles // programs)


def gated_product(x: Tensor, weight: Tensor) -> Tensor:
    """silu(gate) · up.

    Args:
        x: [rows, inputs], contiguous; inputs a multiple of 8.
        weight: [2 × outputs, inputs], contiguous: gate and up; outputs a multiple of 8.

    Returns:
        [rows, outputs]
    """
    (rows, inputs), outputs = x.shape, len(weight) // 2
    y = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    programs = gpu_of(x.device).multiprocessors
    _gated_product[(programs,)](
        TensorDescriptor.from_tensor(x, [_ROWS, _DEPTH]),
        TensorDescriptor.from_tensor(weight.view(2, outputs, inputs), [2, _OUTPUTS, _DEPTH]),
        TensorDescriptor.from_tensor(y, [_ROWS, _OUTPUTS]),
        rows, N=outputs, K=inputs, ROWS=_ROWS, OUTPUTS=_OUTPUTS, DEPTH=_DEPTH, STAGES=_STAGES,
        PROGRAMS=programs, EXACT=INTERPRETED, num_warps=8, **launch_options(x.device),
    )  # fmt: skip
    return y
