# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Experts of a few tokens: each choice of an expert reads its matrices for itself.

With so few tokens hardly any two choose the same expert. Then sorting tokens by expert gains nothing, nor do
matrix units: what counts is to read the chosen matrices in few launches, as `quantization.gemv` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options, next_power_of_two
from server.ops.triton.expert_weights import Stack, arguments, load_weights
from server.ops.triton.gates import SILU, Gate, gated_value
from server.quantization.gptq.kernels.triton_codes import PIECE, SHRINKAGE

ROWS = 4
"""Tokens up to which this pays."""


@dataclass(frozen=True, slots=True)
class Tile:
    """How a matrix is divided.

    Attributes:
        columns, depth: outputs of a program, and inputs that it takes at once.
        warps: of a program.
        unrolled: tiles whose loads may be under way together.
    """

    columns: int
    depth: int
    warps: int = 4
    unrolled: int = 4


@triton.jit
def _part(
    weight, scales, expert, n, value, begin, wanted,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, DTYPE: tl.constexpr,
    FORM: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, SCALES: tl.constexpr, WAY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """float32 [outputs, DEPTH]: weights of outputs `n` from input `begin` on, times `value` [DEPTH]."""
    w = load_weights(
        weight, scales, expert, n, begin, wanted, DTYPE, INPUTS, OUTPUTS, DEPTH,
        FORM, BITS, GROUP, SCALES, WAY,
    )  # fmt: skip
    product = w.to(tl.float32) * value[None, :]
    if BLOCK > 0:
        place = (expert * (OUTPUTS // BLOCK) + n // BLOCK) * (INPUTS // BLOCK) + begin // BLOCK
        product *= tl.load(scales + place, mask=wanted, other=0.0)[:, None]
    return product


@triton.jit
def _finished(
    sums, scales, bias, expert, n, wanted,
    OUTPUTS: tl.constexpr, FORM: tl.constexpr, WAY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """float32 [outputs] of sums of products, scaled, with bias."""
    out = tl.sum(sums, 1)
    if WAY == "shrunk":
        out *= 1.0 / SHRINKAGE
    if FORM == "scaled" and BLOCK == 0:
        out *= tl.load(scales + expert * OUTPUTS + n, mask=wanted, other=0.0)
    if bias is not None:
        out += tl.load(bias + expert * OUTPUTS + n, mask=wanted, other=0.0).to(tl.float32)
    return out


@triton.jit
def _inputs(x, reordered, expert, begin, INPUTS: tl.constexpr, DEPTH: tl.constexpr):
    """float32 [DEPTH]: what an expert's matrix meets from its input `begin` on."""
    k = begin + tl.arange(0, DEPTH)
    inside, column = k < INPUTS, k
    if reordered is not None:
        column = tl.load(reordered + expert * INPUTS + k, mask=inside, other=0)
    return tl.load(x + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _inward(
    x, weight, scales, reordered, bias, y, chosen, x_stride,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, USED: tl.constexpr,
    GATED: tl.constexpr, SHARPNESS: tl.constexpr, LIMIT: tl.constexpr,
    FORM: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, SCALES: tl.constexpr, WAY: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, UNROLLED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of outputs, choice). GATED: outputs n and n + OUTPUTS / 2 are gate and up of result n."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    choice = tl.program_id(1)
    expert = tl.load(chosen + choice)
    x += (choice // USED).to(tl.int64) * x_stride
    made: tl.constexpr = OUTPUTS // 2 if GATED else OUTPUTS
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = n < made
    sums = tl.zeros([COLUMNS, DEPTH], tl.float32)
    ups = sums
    for begin in tl.range(0, INPUTS, DEPTH, loop_unroll_factor=UNROLLED):
        value = _inputs(x, reordered, expert, begin, INPUTS, DEPTH)
        sums += _part(
            weight, scales, expert, n, value, begin, wanted,
            INPUTS, OUTPUTS, DEPTH, x.dtype.element_ty, FORM, BITS, GROUP, SCALES, WAY, BLOCK,
        )  # fmt: skip
        if GATED:
            ups += _part(
                weight, scales, expert, n + made, value, begin, wanted,
                INPUTS, OUTPUTS, DEPTH, x.dtype.element_ty, FORM, BITS, GROUP, SCALES, WAY, BLOCK,
            )  # fmt: skip
    out = _finished(sums, scales, bias, expert, n, wanted, OUTPUTS, FORM, WAY, BLOCK)
    if GATED:
        up = _finished(ups, scales, bias, expert, n + made, wanted, OUTPUTS, FORM, WAY, BLOCK)
        out = gated_value(out, up, SHARPNESS, LIMIT)
    tl.store(y + choice.to(tl.int64) * made + n, out.to(y.dtype.element_ty), mask=wanted)


@triton.jit
def _outward(
    x, weight, scales, reordered, bias, y, chosen, shares,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, USED: tl.constexpr,
    FORM: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, SCALES: tl.constexpr, WAY: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, UNROLLED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of outputs, token): the sum of what its experts make of it, each times its share."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(1)
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = n < OUTPUTS
    total = tl.zeros([COLUMNS], tl.float32)
    for part in range(USED):
        choice = row * USED + part
        expert = tl.load(chosen + choice)
        sums = tl.zeros([COLUMNS, DEPTH], tl.float32)
        for begin in tl.range(0, INPUTS, DEPTH, loop_unroll_factor=UNROLLED):
            value = _inputs(x + choice.to(tl.int64) * INPUTS, reordered, expert, begin, INPUTS, DEPTH)
            sums += _part(
                weight, scales, expert, n, value, begin, wanted,
                INPUTS, OUTPUTS, DEPTH, x.dtype.element_ty, FORM, BITS, GROUP, SCALES, WAY, BLOCK,
            )  # fmt: skip
        out = _finished(sums, scales, bias, expert, n, wanted, OUTPUTS, FORM, WAY, BLOCK)
        total += out * tl.load(shares + choice)
    tl.store(y + row.to(tl.int64) * OUTPUTS + n, total.to(y.dtype.element_ty), mask=wanted)


def tile_of(stack: Stack) -> Tile:
    """For the matrices of a stack; from `benchmarks.gpu.tune_experts` on an H200."""
    form, inputs = arguments(stack)[3], stack.shape[2]
    if form["FORM"] == "codes" or form["BLOCK"]:
        return Tile(32, PIECE)  # that are packed together, or have a scale in common
    depth = min(max(next_power_of_two(inputs), 32), 512 if form["FORM"] == "mxfp4" else 1024)
    return Tile(4096 // depth, depth, 8) if form["FORM"] == "mxfp4" else Tile(2048 // depth, depth)


def few_inward(
    x: Tensor,
    weight: Stack,
    bias: Tensor | None,
    chosen: Tensor,
    gate: Gate | None,
    tile: Tile | None = None,
) -> Tensor:
    """The first product of each token's experts: [tokens, inputs] → [tokens × used, outputs].

    Args:
        weight: [experts, outputs, inputs], in any form that `arguments` knows.
        bias: [experts, outputs].
        chosen: int32 [tokens, used].
        gate: the result is that of the gate, half as wide.
        tile: another than `tile_of` says.
    """
    _, outputs, inputs = weight.shape
    made, how = outputs if gate is None else outputs // 2, gate or SILU
    tile = tile or tile_of(weight)
    stored, scales, reordered, constants = arguments(weight)
    y = torch.empty((chosen.numel(), made), dtype=x.dtype, device=x.device)
    _inward[-(-made // tile.columns), len(y)](
        x, stored, scales, reordered, bias, y, chosen, x.stride(0),
        INPUTS=inputs, OUTPUTS=outputs, USED=chosen.shape[1],
        GATED=gate is not None, SHARPNESS=how.sharpness, LIMIT=how.limit,
        COLUMNS=tile.columns, DEPTH=tile.depth, UNROLLED=tile.unrolled, num_warps=tile.warps,
        **constants, **launch_options(x.device),
    )  # fmt: skip
    return y


def few_outward(
    x: Tensor,
    weight: Stack,
    bias: Tensor | None,
    chosen: Tensor,
    shares: Tensor,
    tile: Tile | None = None,
) -> Tensor:
    """The last product of experts, summed up: [tokens × used, inputs] → [tokens, outputs].

    Args:
        weight, bias, chosen, tile: as of `few_inward`.
        shares: float32 [tokens, used], what each expert's product is multiplied by.
    """
    _, outputs, inputs = weight.shape
    tile = tile or tile_of(weight)
    stored, scales, reordered, constants = arguments(weight)
    y = torch.empty((len(chosen), outputs), dtype=x.dtype, device=x.device)
    _outward[-(-outputs // tile.columns), len(y)](
        x, stored, scales, reordered, bias, y, chosen, shares,
        INPUTS=inputs, OUTPUTS=outputs, USED=chosen.shape[1],
        COLUMNS=tile.columns, DEPTH=tile.depth, UNROLLED=tile.unrolled, num_warps=tile.warps,
        **constants, **launch_options(x.device),
    )  # fmt: skip
    return y
