"""Products whose sums have one order, whatever the number of rows.

Matrix units add input by input in their order, from the first to the last: there is no part of a sum that
another program has. What a unit of Hopper (``wgmma``) makes of an output depends on its row of x and its row
of the weight alone, not on the size of the tile, so tiles may suit the number of rows: a step of one token
takes sixteen outputs a program, so that the whole machine reads the weight, prompts take 128 by 256. A test
reads the compiled kernels for these instructions, `benchmarks.gpu.deterministic` compares the bits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from server.device.triton_support import launch_options, next_power_of_two
from server.ops.triton.fixed_kernel import product_of_many, product_of_one

_FULL = 120
"""Programs that keep a data-centre GPU busy."""
_MOST_NORMALISED = 8192
"""Inputs up to which each program of a single row normalises all of them itself."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How a product is cut up.

    Attributes:
        rows, outputs: of a program's tile.
        depth: inputs that it takes at once.
        warps: of a program.
        stages: tiles of inputs under way at the same time.
    """

    rows: int
    outputs: int
    depth: int
    warps: int
    stages: int


_ONE = Cut(1, 16, 256, 4, 6)
_ONE_GATED = Cut(1, 16, 128, 4, 6)
_CUTS = (
    Cut(128, 256, 64, 8, 4),
    Cut(128, 128, 64, 8, 4),
    Cut(64, 128, 64, 4, 4),
    Cut(64, 64, 64, 4, 5),
    Cut(64, 32, 128, 4, 4),
    Cut(64, 16, 128, 4, 4),
)
"""For several rows, the largest first, which read least."""


@functools.cache
def cut_for(rows: int, outputs: int, gated: bool) -> Cut:
    """The tiles for that many rows.

    Args:
        outputs: of the product; a gated one has two weights for each.
    """
    if rows == 1:
        return _ONE_GATED if gated else _ONE
    for cut in _CUTS:
        if gated and cut.outputs == 256:
            continue
        if rows <= 64 < cut.rows:
            continue
        if triton.cdiv(outputs, cut.outputs) * triton.cdiv(rows, cut.rows) >= _FULL:
            return cut
    return _CUTS[-2] if rows > 64 or gated else _CUTS[-1]


def rows_of_cuts(outputs: int, gated: bool) -> list[int]:
    """For every `cut_for` several rows, the least number of rows that gets it."""
    first: dict[Cut, int] = {}
    for rows in (2, *range(65, 128 * _FULL, 64)):
        first.setdefault(cut_for(rows, outputs, gated), rows)
    return [*first.values()]


def product(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    *,
    bias: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: bool = False,
) -> None:
    """Some tokens times a weight.

    Args:
        x: [rows, inputs], contiguous; inputs a multiple of 8.
        weight: [outputs, inputs], contiguous.
        y: [rows, outputs] ([rows, outputs / 2] if `gated`), rows contiguous; is filled.
        bias: [outputs].
        norm: weight [inputs] of an RMS norm with `eps` that `x` goes through before (`normalises`).
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
    if rows == 1:
        product_of_one[(triton.cdiv(outputs, cut.outputs),)](
            x, x if norm is None else norm, weight, y if bias is None else bias, y, eps, outputs, inputs,
            OUTPUTS=cut.outputs, DEPTH=cut.depth, AHEAD=4 * cut.depth,
            WHOLE=outputs % cut.outputs == 0 and inputs % cut.depth == 0,
            NORM=0 if norm is None else next_power_of_two(inputs), **kinds, **options,
        )  # fmt: skip
        return
    assert norm is None
    product_of_many[(triton.cdiv(outputs, cut.outputs) * triton.cdiv(rows, cut.rows),)](
        TensorDescriptor.from_tensor(x, [cut.rows, cut.depth]),
        TensorDescriptor.from_tensor(weight, [cut.outputs, cut.depth]),
        y if bias is None else bias, y, rows, outputs, inputs, y.stride(0),
        ROWS=cut.rows, OUTPUTS=cut.outputs, DEPTH=cut.depth, **kinds, **options,
    )  # fmt: skip


def normalises(rows: int, inputs: int) -> bool:
    """Whether `product` takes a norm for that many rows."""
    return rows == 1 and inputs <= _MOST_NORMALISED
