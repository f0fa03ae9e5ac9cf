"""Top-k, top-p and min-p of a whole batch without sorting: what may not be drawn becomes -inf.

All three keep what is not below some score. That of min-p follows from the peak; the others are found
digit by digit, as radix select does: scores are read as integers in the same order, and each round adds
up, for the 16 values of the next four bits, how many scores (top-k) or how much probability (top-p) they
stand for. Four rounds find the exact score among 16-bit ones, eight among 32-bit ones.

Of equal scores at the border all are kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.continuous_batching.kernels.triton_support import launch_options, next_power_of_two

_TILE = 2048
_DIGIT_BITS = 4
_DIGITS = 1 << _DIGIT_BITS
_FIRST_BASE = -_DIGITS // 2
"""The least digit of the first round: integers of both signs, shifted by all bits but four."""

_LOWEST = -(1 << 31)


@triton.jit
def _ordered(score):
    """int32 in the order of the scores; those of 16 bits are within 16 bits."""
    if score.dtype.primitive_bitwidth == 16:
        bits = score.to(tl.int16, bitcast=True).to(tl.int32)
        flipped = (bits >> 15) & 0x7FFF
    else:
        bits = score.to(tl.int32, bitcast=True)
        flipped = (bits >> 31) & 0x7FFFFFFF
    return bits ^ flipped  # of a negative score all bits but the sign


@triton.jit
def _peak_of(line, peaks, tiles, TILES: tl.constexpr):
    """The greatest score of a line, from those of its tiles."""
    t = tl.arange(0, TILES)
    return tl.max(tl.load(peaks + line * tiles + t, mask=t < tiles, other=float("-inf")), 0)


@triton.jit
def _find_peaks(logits, peaks, stride, vocab, tiles, TILE: tl.constexpr, PDL: tl.constexpr):
    """Program (line, tile of the vocabulary)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line, tile = tl.program_id(0), tl.program_id(1)
    i = tile * TILE + tl.arange(0, TILE)
    score = tl.load(logits + line.to(tl.int64) * stride + i, mask=i < vocab, other=float("-inf"))
    tl.store(peaks + line * tiles + tile, tl.max(score.to(tl.float32), 0))


@triton.jit(do_not_specialize=["shift"])
def _tally(
    logits, rows, limits, temperatures, peaks, lows, bases, tallies, stride, vocab, tiles, shift,
    MASS: tl.constexpr, DIGITS: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line, tile): what the scores of each value of the digit add up to."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line, tile = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + line)
    if tl.load(limits + row) > 0.0:
        i = tile * TILE + tl.arange(0, TILE)
        score = tl.load(logits + line.to(tl.int64) * stride + i, mask=i < vocab, other=float("-inf"))
        key = _ordered(score)
        weight = tl.where((i < vocab) & (key >= tl.load(lows + line)), 1.0, 0.0)
        if MASS:
            below = score.to(tl.float32) - _peak_of(line, peaks, tiles, TILES)
            weight *= tl.exp(below / tl.load(temperatures + row))
        digit = (key >> shift) - tl.load(bases + line)
        for d in tl.static_range(DIGITS):
            at = tallies + (line * tiles + tile) * DIGITS + d
            tl.store(at, tl.sum(tl.where(digit == d, weight, 0.0), 0))


@triton.jit(do_not_specialize=["scale"])
def _narrow(
    rows, limits, lows, tallies, bases, aboves, targets, tiles, scale,
    MASS: tl.constexpr, FIRST: tl.constexpr, DIGITS: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line): the digit of the lowest score that is kept."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0)
    limit = tl.load(limits + tl.load(rows + line))
    if limit > 0.0:
        t, d = tl.arange(0, TILES), tl.arange(0, DIGITS)
        at = tallies + (line * tiles + t[:, None]) * DIGITS + d[None, :]
        tally = tl.sum(tl.load(at, mask=t[:, None] < tiles, other=0.0), 0)
        greater = tl.sum(tl.where(d[None, :] > d[:, None], tally[None, :], 0.0), 1)
        if FIRST:
            above, total = 0.0, tl.sum(tally, 0)  # of what top-k left; something is always kept
            target = tl.maximum(limit * total, 1e-30) if MASS else tl.minimum(limit, total)
            tl.store(targets + line, target)
        else:
            above, target = tl.load(aboves + line), tl.load(targets + line)
        if MASS:  # the lowest score with less than the target above it
            digit = tl.min(tl.where((tally > 0.0) & (above + greater < target), d, DIGITS - 1), 0)
        else:  # the greatest that has as many as the target not below it
            digit = tl.max(tl.where(above + greater + tally >= target, d, 0), 0)
        tl.store(aboves + line, above + tl.sum(tl.where(d > digit, tally, 0.0), 0))
        low = tl.load(bases + line) + digit
        tl.store(bases + line, low * scale)
        if scale == 1:  # the last round
            tl.store(lows + line, low)


@triton.jit
def _exclude(
    logits, rows, temperatures, min_ps, peaks, lows, stride, vocab, tiles,
    TILE: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line, tile)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line, tile = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + line)
    min_p = tl.load(min_ps + row)
    floor = _peak_of(line, peaks, tiles, TILES) + tl.load(temperatures + row) * tl.log(
        tl.maximum(min_p, 1e-30)
    )
    floor = tl.where(min_p > 0.0, floor, float("-inf"))
    i = tile * TILE + tl.arange(0, TILE)
    at = logits + line.to(tl.int64) * stride + i
    score = tl.load(at, mask=i < vocab, other=float("-inf"))
    excluded = (_ordered(score) < tl.load(lows + line)) | (score.to(tl.float32) < floor)
    tl.store(at, float("-inf"), mask=(i < vocab) & excluded)


def exclude(
    logits: Tensor,
    rows: Tensor,
    temperatures: Tensor,
    top_ks: Tensor | None,
    top_ps: Tensor | None,
    min_ps: Tensor,
) -> None:
    """Set what may not be drawn to -inf, in place; top-p is of what top-k leaves, min-p of the peak.

    Args:
        logits: [lines, vocab].
        rows: int32 [lines], table row of each line.
        temperatures: float32 [rows].
        top_ks: float32 [rows], 0 for all tokens; None where no line has another.
        top_ps: float32 [rows], 0 for all of the probability; None likewise.
        min_ps: float32 [rows].
    """
    lines, vocab = logits.shape
    tiles = -(-vocab // _TILE)
    sizes = {"TILE": _TILE, "TILES": next_power_of_two(tiles)}
    options = launch_options(logits.device)
    peaks = torch.empty((lines, tiles), dtype=torch.float32, device=logits.device)
    lows = torch.full((lines,), _LOWEST, dtype=torch.int32, device=logits.device)
    _find_peaks[(lines, tiles)](logits, peaks, logits.stride(0), vocab, tiles, TILE=_TILE, **options)
    for limits, mass in ((top_ks, False), (top_ps, True)):
        if limits is not None:
            _find_lows(logits, rows, limits, temperatures, peaks, lows, mass)
    _exclude[(lines, tiles)](
        logits, rows, temperatures, min_ps, peaks, lows, logits.stride(0), vocab, tiles, **sizes, **options
    )


def _find_lows(
    logits: Tensor,
    rows: Tensor,
    limits: Tensor,
    temperatures: Tensor,
    peaks: Tensor,
    lows: Tensor,
    mass: bool,
) -> None:
    """Raise `lows` of the lines that have a limit to the lowest score that it keeps."""
    (lines, vocab), tiles, device = logits.shape, peaks.shape[1], logits.device
    bases = torch.full((lines,), _FIRST_BASE, dtype=torch.int32, device=device)
    tallies = torch.empty((lines, tiles, _DIGITS), dtype=torch.float32, device=device)
    aboves, targets = (peaks.new_empty(lines) for _ in range(2))
    sizes = {"DIGITS": _DIGITS, "TILES": next_power_of_two(tiles)}
    options = launch_options(device)
    bits = logits.dtype.itemsize * 8
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        _tally[(lines, tiles)](
            logits, rows, limits, temperatures, peaks, lows, bases, tallies, logits.stride(0), vocab, tiles,
            shift, MASS=mass, TILE=_TILE, num_warps=1, **sizes, **options,
        )  # fmt: skip
        _narrow[(lines,)](
            rows, limits, lows, tallies, bases, aboves, targets, tiles, _DIGITS if shift else 1,
            MASS=mass, FIRST=shift == bits - _DIGIT_BITS, num_warps=4, **sizes, **options,
        )  # fmt: skip
