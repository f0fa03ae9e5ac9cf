"""Products with many matrices, each on the rows that are sent to it; the host does not look how many."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options

_COLUMNS, _DEPTH = 64, 64
"""Outputs of a program, and inputs that it takes at once."""
_FEW, _MANY = 16, 64
"""Rows of a program: of steps in which an expert gets few of them, and of long prompts."""


@dataclass(slots=True)
class Assignments:
    """Which rows are sent to which expert.

    Attributes:
        used: experts of a row.
        tile: rows of a program.
        order: int32 [rows × used], places in the flat list of choices, expert by expert.
        begins, ends: int32 [experts], where each expert's part of `order` begins and ends.
        first_tiles: int32 [experts], the first tile of each.
        experts: int32 [tiles], whose rows are in a tile; the number of experts: none.
    """

    used: int
    tile: int
    order: Tensor
    begins: Tensor
    ends: Tensor
    first_tiles: Tensor
    experts: Tensor


def assign(chosen: Tensor, count: int) -> Assignments:
    """Sort choices by expert, in operations of the device alone.

    Args:
        chosen: integers [rows, used].
        count: experts that there are.
    """
    flat, device = chosen.flatten(), chosen.device
    tile = _FEW if len(flat) < _MANY * count else _MANY
    ones = torch.ones_like(flat, dtype=torch.int32)
    counts = torch.zeros(count, dtype=torch.int32, device=device).scatter_add_(0, flat, ones)
    ends = counts.cumsum(0, dtype=torch.int32)
    tiles = (counts + tile - 1) // tile
    last_tiles = tiles.cumsum(0, dtype=torch.int32)
    most = len(flat) // tile + min(count, len(flat))  # as many as there can be
    places = torch.arange(most, dtype=torch.int32, device=device)
    experts = torch.searchsorted(last_tiles, places, right=True, out_int32=True)
    order = flat.argsort(stable=True).int()
    return Assignments(chosen.shape[1], tile, order, ends - counts, ends, last_tiles - tiles, experts)


@triton.jit
def _product(
    x, weight, bias, y, order, begins, ends, first_tiles, experts, shares, x_stride,
    COUNT: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, USED: tl.constexpr,
    GATHER: tl.constexpr, BIASED: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of rows, tile of outputs).

    With GATHER, rows of x are tokens and those of y are sorted by expert; otherwise rows of x are sorted and
    those of y are choices of tokens, each times its share.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    tile = tl.program_id(0)
    expert = tl.load(experts + tile)
    if expert >= COUNT:
        return
    row = tl.load(begins + expert) + (tile - tl.load(first_tiles + expert)) * ROWS + tl.arange(0, ROWS)
    present = row < tl.load(ends + expert)
    choice = tl.load(order + row, mask=present, other=0)
    source = choice // USED if GATHER else row
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    wanted = n < OUTPUTS
    x_at = x + source.to(tl.int64)[:, None] * x_stride + k[None, :]
    w_at = weight + expert.to(tl.int64) * (OUTPUTS * INPUTS) + n[None, :] * INPUTS + k[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, INPUTS, DEPTH):
        within = k < INPUTS - begin
        a = tl.load(x_at + begin, mask=present[:, None] & within[None, :], other=0.0)
        b = tl.load(w_at + begin, mask=within[:, None] & wanted[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    if BIASED:
        total += tl.load(bias + expert * OUTPUTS + n, mask=wanted, other=0.0).to(tl.float32)[None, :]
    target = row
    if not GATHER:
        total *= tl.load(shares + choice, mask=present, other=0.0)[:, None]
        target = choice
    at = y + target.to(tl.int64)[:, None] * OUTPUTS + n[None, :]
    tl.store(at, total.to(y.dtype.element_ty), mask=present[:, None] & wanted[None, :])


def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, to: Assignments, shares: Tensor, gather: bool
) -> Tensor:
    count, outputs, inputs = weight.shape
    grid = (len(to.experts), -(-outputs // _COLUMNS))
    _product[grid](
        x, weight, weight if bias is None else bias, y, to.order, to.begins, to.ends, to.first_tiles,
        to.experts, shares, x.stride(0),
        COUNT=count, INPUTS=inputs, OUTPUTS=outputs, USED=to.used, GATHER=gather, BIASED=bias is not None,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        ROWS=to.tile, COLUMNS=_COLUMNS, DEPTH=_DEPTH, num_warps=4, num_stages=3,
        **launch_options(x.device),
    )  # fmt: skip
    return y


def inward(x: Tensor, weight: Tensor, bias: Tensor | None, to: Assignments) -> Tensor:
    """The first product of each row's experts: [rows, inputs] → [rows × used, outputs], sorted by expert.

    Args:
        weight: [experts, outputs, inputs].
        bias: [experts, outputs].
    """
    y = torch.empty((len(to.order), weight.shape[1]), dtype=x.dtype, device=x.device)
    return _launch(x, weight, bias, y, to, y, True)


def outward(x: Tensor, weight: Tensor, bias: Tensor | None, to: Assignments, shares: Tensor) -> Tensor:
    """The last product of experts, summed up: [rows × used, inputs], sorted by expert → [rows, outputs].

    Args:
        weight, bias: as of `inward`.
        shares: float32 [rows, used], what each expert's product is multiplied by.
    """
    y = torch.empty((len(to.order), weight.shape[1]), dtype=torch.float32, device=x.device)
    _launch(x, weight, bias, y, to, shares, False)
    return y.view(-1, to.used, weight.shape[1]).sum(1).to(x.dtype)
