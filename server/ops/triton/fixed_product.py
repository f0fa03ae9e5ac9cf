"""Products whose sums have one order, whatever the number of rows.

The inputs are cut into groups that depend on the weight alone. Within a group, matrix units add input by
input in their order; groups are added up in theirs. Few rows: a program a group, so that the whole machine
reads the weight, and the last program of a tile adds the groups up. Many rows: a program takes its groups in
turn. What a unit of Hopper (``wgmma``) makes of an output depends on its row and column of the operands
alone, not on the size of the tile, so tiles may suit the number of rows. A test reads the compiled kernels
for these instructions, `benchmarks.gpu.deterministic` compares the bits.

Products of prompts have an order of their own, in one group, which large tiles are fastest with.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from server.device.triton_support import launch_options, next_power_of_two
from server.ops.triton.fixed_kernel import in_parts, in_turn

_OUTPUTS = 64
"""Outputs of a program's tile where rows are few: the least that the matrix units of Hopper take."""
_UNIT = 256
"""Inputs of the smallest group; groups are multiples of it."""
_PROGRAMS = 320
"""For one row, about as many read a weight at the same time."""
_MOST_IN_PARTS = 64
"""Rows up to which a group is a program's: with more, writing its sums down costs more than it gives."""
_FULL = 120
"""Programs that keep a data-centre GPU busy."""
_MOST_NORMALISED = 8192
"""Inputs up to which each program of a single row normalises all of them itself."""
COUNTERS = 8192
"""Tiles of a product at most whose groups are added up by the last program to arrive."""


def group_of(outputs: int, inputs: int) -> int:
    """Inputs of a group of a weight: this is the order of sums, so it depends on nothing else.

    Args:
        outputs: of the product; of gate and up together, half the rows of the weight.
    """
    tiles = -(-outputs // _OUTPUTS)
    groups = min(max(-(-_PROGRAMS // tiles), 1), 16)
    return -(-inputs // (groups * _UNIT)) * _UNIT


@dataclass(frozen=True, slots=True)
class Cut:
    """How a product is cut up.

    Attributes:
        outputs, rows: of a program's tile.
        depth: inputs that it takes at once.
        warps: of a program.
        stages: tiles of inputs under way at the same time.
        parts: whether groups are programs of their own.
    """

    outputs: int
    rows: int
    depth: int
    warps: int
    stages: int
    parts: bool = False


@functools.cache
def cut_for_decodes(rows: int, outputs: int, inputs: int, gated: bool) -> Cut:
    """The tiles for that many rows."""
    tiles, split = triton.cdiv(outputs, _OUTPUTS), group_of(outputs, inputs) < inputs
    if rows <= _MOST_IN_PARTS:
        tile = max(next_power_of_two(rows), 16)
        return Cut(_OUTPUTS, tile, 64, 4, 3 if gated or tile > 32 else 4, True)
    for cut in (Cut(128, 128, 64, 8, 4), Cut(64, 128, 64, 4, 4), Cut(64, 64, 64, 4, 4)):
        if gated and cut.outputs > _OUTPUTS:
            continue  # it has two weights
        if triton.cdiv(outputs, cut.outputs) * triton.cdiv(rows, cut.rows) >= _FULL:
            return cut
    if split and 2 * tiles * triton.cdiv(rows, 64) < _FULL:
        return Cut(_OUTPUTS, 64, 64, 4, 3, True)
    return Cut(_OUTPUTS, 64, 64, 4, 4)


@functools.cache
def cut_for_prompts(rows: int) -> Cut:
    """The tiles for that many rows."""
    return Cut(128, 64, 64, 4, 4) if rows <= 256 else Cut(256, 128, 64, 8, 3)


def decode_product(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    arrivals: Tensor,
    *,
    bias: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: bool = False,
) -> None:
    """A step's decodes times a weight.

    Args:
        x: [rows, inputs], contiguous; inputs a multiple of 8.
        weight: [outputs, inputs], contiguous.
        y: [rows, outputs] ([rows, outputs / 2] if `gated`), rows contiguous; is filled.
        arrivals: int32 zeros, `COUNTERS` of them; they are zero again afterwards.
        bias: [outputs].
        norm: weight [inputs] of an RMS norm with `eps` that `x`, of one row, goes through before
            (`normalises`).
        gated: the weight stacks gate and up, each of half its rows; the result is silu(gate) · up.
        residual: `y` holds what is added.
    """
    (rows, inputs), outputs = x.shape, y.shape[1]
    group, cut = group_of(outputs, inputs), cut_for_decodes(rows, outputs, inputs, gated)
    assert weight.shape == (outputs * (2 if gated else 1), inputs)
    if not cut.parts:
        _launch_in_turn(x, weight, y, cut, group, True, bias, gated, residual)
        return
    groups = triton.cdiv(inputs, group)
    grid = (triton.cdiv(outputs, cut.outputs), groups, triton.cdiv(rows, cut.rows))
    assert groups == 1 or grid[0] * grid[2] <= COUNTERS
    shape = (groups, rows, weight.shape[0])
    partials = torch.empty(shape, dtype=torch.float32, device=x.device) if groups > 1 else y
    in_parts[grid](
        x, x if norm is None else norm, weight, y if bias is None else bias, y, partials, arrivals, eps,
        rows, outputs, inputs, group, x.stride(0), y.stride(0),
        OUTPUTS=cut.outputs, ROWS=cut.rows, DEPTH=cut.depth,
        WHOLE=outputs % cut.outputs == 0 and inputs % cut.depth == 0, GROUPS=groups,
        NORM=0 if norm is None else next_power_of_two(inputs),
        BIASED=bias is not None, GATED=gated, RESIDUAL=residual,
        num_warps=cut.warps, num_stages=cut.stages, enable_fp_fusion=False, **launch_options(x.device),
    )  # fmt: skip


def normalises(rows: int, inputs: int) -> bool:
    """Whether `decode_product` takes a norm for that many rows."""
    return rows == 1 and inputs <= _MOST_NORMALISED


def prompt_product(
    x: Tensor, weight: Tensor, y: Tensor, *, bias: Tensor | None = None, residual: bool = False
) -> None:
    """Tokens of prompts times a weight; arguments as of `decode_product`."""
    _launch_in_turn(x, weight, y, cut_for_prompts(len(x)), x.shape[1], False, bias, False, residual)


def _launch_in_turn(
    x: Tensor, weight: Tensor, y: Tensor, cut: Cut, group: int, weight_first: bool, bias: Tensor | None,
    gated: bool, residual: bool,
) -> None:  # fmt: skip
    (rows, inputs), outputs = x.shape, y.shape[1]
    grid = (triton.cdiv(outputs, cut.outputs) * triton.cdiv(rows, cut.rows),)
    in_turn[grid](
        TensorDescriptor.from_tensor(x, [cut.rows, cut.depth]),
        TensorDescriptor.from_tensor(weight, [cut.outputs, cut.depth]),
        y if bias is None else bias, y, rows, outputs, inputs, group, y.stride(0),
        OUTPUTS=cut.outputs, ROWS=cut.rows, DEPTH=cut.depth, WEIGHT_FIRST=weight_first,
        SPLIT=group < inputs, BIASED=bias is not None, GATED=gated, RESIDUAL=residual,
        num_warps=cut.warps, num_stages=cut.stages, enable_fp_fusion=False, **launch_options(x.device),
    )  # fmt: skip
