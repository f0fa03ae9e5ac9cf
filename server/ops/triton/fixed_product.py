"""Products whose sums have one order, whatever the number of rows.

Matrix units add input by input in their order, from the first to the last: there is no part of a sum that
another program has. What a unit of Hopper (``wgmma``) makes of an output depends on its row of x and its row
of the weight alone, not on the size of the tile, nor on which of the two it takes as lines. So tiles may suit
the number of rows: a step of one token takes 64 outputs and 16 rows a program, prompts take 128 rows and 256
outputs. A test reads the compiled kernels for these instructions, `benchmarks.gpu.deterministic` compares the
bits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from server.device.triton_support import launch_options
from server.ops.triton.fixed_kernel import product_of_few, product_of_many

_MULTIPROCESSORS = 132
"""Of a Hopper GPU: as many programs compute at the same time."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How a product is cut up.

    Attributes:
        rows, outputs: of a program's tile.
        depth: inputs that it takes at once.
        warps: of a program.
        stages: tiles of inputs under way at the same time.
        cost: microseconds of a program for 64 inputs, measured on an H200.
    """

    rows: int
    outputs: int
    depth: int
    warps: int
    stages: int
    cost: float


_FEW = (Cut(16, 64, 128, 4, 6, 0.14), Cut(32, 64, 128, 4, 5, 0.16))
"""For as many rows or fewer."""
_MANY = (
    Cut(64, 64, 128, 4, 4, 0.19),
    Cut(64, 128, 64, 4, 5, 0.26),
    Cut(128, 64, 64, 4, 5, 0.26),
    Cut(128, 128, 64, 8, 5, 0.33),
    Cut(128, 256, 64, 8, 4, 0.62),
)
_FEW_GATED = (Cut(16, 64, 256, 4, 3, 0.25), Cut(32, 64, 128, 4, 5, 0.27))
_MANY_GATED = (
    Cut(64, 64, 128, 4, 4, 0.31),
    Cut(64, 128, 64, 4, 5, 0.44),
    Cut(128, 64, 64, 4, 5, 0.43),
    Cut(128, 128, 64, 8, 4, 0.78),
)
"""Gated products have two weights for each output."""


@functools.cache
def cut_for(rows: int, outputs: int, gated: bool) -> Cut:
    """The tiles for that many rows: those with which the product should end first."""
    for cut in _FEW_GATED if gated else _FEW:
        if rows <= cut.rows:
            return cut

    def cost(cut: Cut) -> float:
        programs = -(-outputs // cut.outputs) * -(-rows // cut.rows)
        return -(-programs // _MULTIPROCESSORS) * cut.cost

    return min(_MANY_GATED if gated else _MANY, key=cost)


def rows_of_cuts(outputs: int, gated: bool) -> list[int]:
    """For every `cut_for` numbers of rows, the least number of rows that gets it."""
    first: dict[Cut, int] = {}
    for rows in (1, 17, 33, *range(65, 16385, 64)):
        first.setdefault(cut_for(rows, outputs, gated), rows)
    return [*first.values()]


def product(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    *,
    bias: Tensor | None = None,
    gated: bool = False,
    residual: bool = False,
) -> None:
    """Some tokens times a weight.

    Args:
        x: [rows, inputs], contiguous; inputs a multiple of 8.
        weight: [outputs, inputs], contiguous.
        y: [rows, outputs] ([rows, outputs / 2] if `gated`), rows contiguous; is filled.
        bias: [outputs].
        gated: the weight stacks gate and up, each of half its rows; the result is silu(gate) · up.
        residual: `y` holds what is added.
    """
    (rows, inputs), outputs = x.shape, y.shape[1]
    if rows == 0:
        return  # logits of a step that chooses no token
    assert weight.shape == (outputs * (2 if gated else 1), inputs)
    kinds = {"BIASED": bias is not None, "GATED": gated, "RESIDUAL": residual}
    cut = cut_for(rows, outputs, gated)
    # a product and a sum are rounded one by one: the compiler may fuse them in one kernel and not in another
    options = {"num_warps": cut.warps, "num_stages": cut.stages, "enable_fp_fusion": False}
    options |= launch_options(x.device)
    tiles = (triton.cdiv(outputs, cut.outputs), triton.cdiv(rows, cut.rows))
    kernel, grid = (
        (product_of_few, tiles) if rows <= _FEW[-1].rows else (product_of_many, (tiles[0] * tiles[1],))
    )
    kernel[grid](
        TensorDescriptor.from_tensor(x, [cut.rows, cut.depth]),
        TensorDescriptor.from_tensor(weight, [cut.outputs, cut.depth]),
        y if bias is None else bias, y, rows, outputs, inputs, y.stride(0),
        ROWS=cut.rows, OUTPUTS=cut.outputs, DEPTH=cut.depth, **kinds, **options,
    )  # fmt: skip
