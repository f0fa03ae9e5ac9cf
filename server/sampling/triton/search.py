"""Among some scores, the one up to which there are, or weigh, as much as is asked for: for use in kernels."""

from __future__ import annotations

import triton
import triton.language as tl

WAYS = 16
"""Into how many parts a round of the search divides what is left."""
CHUNK = 512
"""Scores that are looked at side by side."""


@triton.jit
def search(
    scores, length, peak, before, target, temperature,
    MASS: tl.constexpr, WAYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The least distance below `peak` up to which there are, or weigh, as much as `target`, with `before` in
    front; the greatest if that is never reached, infinite where there are no scores.

    Distances are not negative: as integers they have the same order.
    """
    i, way = tl.arange(0, CHUNK), tl.arange(0, WAYS)
    least, greatest = tl.full((CHUNK,), 0x7F800000, tl.int32), tl.zeros((CHUNK,), tl.int32)
    for begin in range(0, length, CHUNK):
        inside = begin + i < length
        distance = tl.abs(peak - tl.load(scores + begin + i, mask=inside, other=0.0))
        bits = tl.where(distance <= float("inf"), distance, float("inf")).to(tl.int32, bitcast=True)
        least = tl.minimum(least, tl.where(inside, bits, 0x7F800000))
        greatest = tl.maximum(greatest, tl.where(inside, bits, 0))
    low, high = tl.min(least, 0), tl.max(greatest, 0)
    while low < high:
        width = (high - low) // WAYS + 1
        ends = low + width * (way + 1) - 1
        reached = tl.zeros((CHUNK, WAYS), tl.float32)
        for begin in range(0, length, CHUNK):
            inside = begin + i < length
            distance = tl.abs(peak - tl.load(scores + begin + i, mask=inside, other=0.0))
            weight = tl.where(inside, 1.0, 0.0)
            if MASS:
                weight *= tl.exp(-distance / temperature)
            within = distance.to(tl.int32, bitcast=True)[:, None] <= ends[None, :]
            reached += tl.where(within, weight[:, None], 0.0)
        short = tl.sum((before + tl.sum(reached, 0) < target).to(tl.int32), 0)
        low = tl.minimum(low + width * tl.minimum(short, WAYS - 1), high)
        high = tl.minimum(high, low + width - 1)
    return low.to(tl.float32, bitcast=True)


@triton.jit
def mass_until(scores, length, peak, border, temperature, CHUNK: tl.constexpr):
    """What the listed scores up to `border` below `peak` weigh."""
    i = tl.arange(0, CHUNK)
    mass = tl.zeros((CHUNK,), tl.float32)
    for begin in range(0, length, CHUNK):
        distance = tl.abs(peak - tl.load(scores + begin + i, mask=begin + i < length, other=float("-inf")))
        mass += tl.where(distance <= border, tl.exp(-distance / temperature), 0.0)
    return tl.sum(mass, 0)
