"""Which experts a row is sent to, and which rows an expert gets, without a look by the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options, next_power_of_two
from server.layers.spec import ExpertsSpec

_PIECE = 1024
"""Choices that are looked at at a time."""


@triton.jit
def _route(
    scores, chosen, shares, stride,
    COUNT: tl.constexpr, TILE: tl.constexpr, USED: tl.constexpr, NORMALIZED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (row). Of equal scores the first is chosen."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, TILE)
    score = tl.load(scores + row * stride + e, mask=e < COUNT, other=float("-inf")).to(tl.float32)
    weight = tl.exp(score - tl.max(score, 0))
    whole = tl.sum(weight, 0)
    if NORMALIZED:
        whole = 0.0
        left = score
        for _ in tl.static_range(USED):
            best = tl.argmax(left, 0, tie_break_left=True)
            whole += tl.sum(tl.where(e == best, weight, 0.0), 0)
            left = tl.where(e == best, float("-inf"), left)
    left = score
    for i in tl.static_range(USED):
        best = tl.argmax(left, 0, tie_break_left=True)
        tl.store(chosen + row * USED + i, best)
        tl.store(shares + row * USED + i, tl.sum(tl.where(e == best, weight, 0.0), 0) / whole)
        left = tl.where(e == best, float("-inf"), left)


def route(scores: Tensor, spec: ExpertsSpec) -> tuple[Tensor, Tensor]:
    """(chosen experts int32, shares float32), both [rows, used], from scores [rows, experts]."""
    rows = len(scores)
    chosen = torch.empty((rows, spec.used), dtype=torch.int32, device=scores.device)
    shares = torch.empty((rows, spec.used), dtype=torch.float32, device=scores.device)
    _route[(rows,)](
        scores, chosen, shares, scores.stride(0),
        COUNT=spec.count, TILE=next_power_of_two(spec.count), USED=spec.used, NORMALIZED=spec.normalized,
        num_warps=min(max(next_power_of_two(spec.count) // 128, 1), 4),
        **launch_options(scores.device, overlapped=False),
    )  # fmt: skip
    return chosen, shares


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


@triton.jit(do_not_specialize=["choices", "most"])  # or each alignment of them would be compiled
def _assign(
    chosen, order, begins, ends, first_tiles, experts, choices, most,
    COUNT: tl.constexpr, BINS: tl.constexpr, ROWS: tl.constexpr, PIECE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (expert): its part of everything."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    own = tl.program_id(0)
    i, e = tl.arange(0, PIECE), tl.arange(0, BINS)
    counts = tl.zeros([BINS], tl.int32)
    for first in range(0, choices, PIECE):
        # those that there are not fall into the last bin, which is no expert's
        counts += tl.histogram(tl.load(chosen + first + i, mask=first + i < choices, other=COUNT), BINS)
    tiles = tl.where(e < COUNT, tl.cdiv(counts, ROWS), 0)
    begin = tl.sum(tl.where(e < own, counts, 0), 0)
    first_tile = tl.sum(tl.where(e < own, tiles, 0), 0)
    last_tile = first_tile + tl.sum(tl.where(e == own, tiles, 0), 0)
    tl.store(begins + own, begin)
    tl.store(ends + own, begin + tl.sum(tl.where(e == own, counts, 0), 0))
    tl.store(first_tiles + own, first_tile)
    for first in range(first_tile, last_tile, PIECE):
        tl.store(experts + first + i, own, mask=first + i < last_tile)
    if own == COUNT - 1:
        for first in range(last_tile, most, PIECE):
            tl.store(experts + first + i, COUNT, mask=first + i < most)
    for first in range(0, choices, PIECE):
        there = tl.load(chosen + first + i, mask=first + i < choices, other=COUNT) == own
        before = tl.cumsum(there.to(tl.int32), 0) - 1
        tl.store(order + begin + before, first + i, mask=there)
        begin += tl.sum(there.to(tl.int32), 0)


def assign(chosen: Tensor, count: int, tile: int) -> Assignments:
    """Sort choices by expert.

    Args:
        chosen: int32 [rows, used].
        count: experts that there are.
        tile: rows of a program.
    """
    choices, device = chosen.numel(), chosen.device
    most = choices // tile + min(count, choices)  # tiles that there can be
    order = torch.empty(choices, dtype=torch.int32, device=device)
    begins, ends, first_tiles = torch.empty((3, count), dtype=torch.int32, device=device)
    experts = torch.empty(most, dtype=torch.int32, device=device)
    _assign[(count,)](
        chosen, order, begins, ends, first_tiles, experts, choices, most,
        COUNT=count, BINS=next_power_of_two(count + 1), ROWS=tile, PIECE=_PIECE, num_warps=4,
        **launch_options(device),
    )  # fmt: skip
    return Assignments(chosen.shape[1], tile, order, begins, ends, first_tiles, experts)
