"""Greedy choice and sampling of a whole batch in two kernels, without a look by the host.

Sampling inverts the distribution's cumulative sum at one uniform number a row, which is the same
function of (seed, answer, position) as in `server.random`. The first kernel reads the logits once
and keeps peak, sum and best token of each tile of the vocabulary; the second finds the tile that the
number falls into and looks into that one only.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.continuous_batching.kernels.triton_filters import Bounds
from server.continuous_batching.kernels.triton_penalties import History
from server.continuous_batching.kernels.triton_support import launch_options, next_power_of_two

FAILED = -1
"""Stands for the token of a row whose scores are not finite."""

_TILE = 4096


@triton.jit
def _mix(x):
    """SplitMix64's finaliser on int64 (the shifts are logical)."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * (-0x40A7B892E31B1A47)
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * (-0x6B2FB644ECCEEE15)
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def _uniform(seed, answer, position):
    """A number in (0, 1), float64: `server.random.uniform`."""
    golden = -0x61C8864680B583EB
    state = _mix(seed + golden)
    state = _mix(state + (answer + 1) * golden)
    state = _mix(state + (position + 1) * golden)
    return (((state >> 12) & 0xFFFFFFFFFFFFF).to(tl.float64) + 0.5) * 2.220446049250313e-16


@triton.jit
def peak_and_sum(score):
    """Of a tile of scores: the greatest, and the sum of exp(score - greatest)."""
    peak = tl.max(score, 0)
    base = tl.where(peak == float("-inf"), 0.0, peak)  # a tile that is excluded weighs nothing
    return peak, tl.sum(tl.exp(score - base), 0)


@triton.jit
def _load_scores(
    line, tile, logits, line_peaks, borders, stride, vocab,
    FILTERED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of a line's scores, float32; -inf for what filters exclude."""
    i = tile * TILE + tl.arange(0, TILE)
    at = logits + line.to(tl.int64) * stride + i
    score = tl.load(at, mask=i < vocab, other=float("-inf")).to(tl.float32)
    if FILTERED:  # what is not a number is not excluded: it shall be found out
        beyond = tl.load(line_peaks + line) - score > tl.load(borders + line)
        score = tl.where(beyond, float("-inf"), score)
    return score


@triton.jit
def _summarise(
    logits, rows, temperatures, line_peaks, borders, peaks, sums, bests, stride, vocab, tiles,
    FILTERED: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line, tile of the vocabulary)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line, tile = tl.program_id(0), tl.program_id(1)
    temperature = tl.load(temperatures + tl.load(rows + line))
    score = _load_scores(line, tile, logits, line_peaks, borders, stride, vocab, FILTERED, TILE)
    if temperature > 0.0:
        score = score / temperature
    peak, total = peak_and_sum(score)
    tl.store(peaks + line * tiles + tile, peak)
    tl.store(sums + line * tiles + tile, total)
    tl.store(bests + line * tiles + tile, tile * TILE + tl.argmax(score, 0))


@triton.jit
def _choose(
    logits, rows, positions, temperatures, seeds, answers, line_peaks, borders, peaks, sums, bests,
    tokens, last_tokens, penalised, seen, counts, stride, vocab, tiles,
    FILTERED: tl.constexpr, PENALISED: tl.constexpr,
    TILE: tl.constexpr, TILES: tl.constexpr, FAILED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0)
    row = tl.load(rows + line)
    temperature = tl.load(temperatures + row)
    t = tl.arange(0, TILES)
    tile_peaks = tl.load(peaks + line * tiles + t, mask=t < tiles, other=float("-inf"))
    tile_sums = tl.load(sums + line * tiles + t, mask=t < tiles, other=0.0)
    peak = tl.max(tile_peaks, 0)
    best = tl.minimum(tl.argmax(tile_peaks, 0), tiles - 1)  # of scores that are not numbers any may be found
    token = tl.load(bests + line * tiles + best)
    weights = tile_sums * tl.exp(tile_peaks - peak)
    total = tl.sum(weights, 0)
    if temperature > 0.0:
        position = tl.load(positions + line).to(tl.int64) + 1
        number = _uniform(tl.load(seeds + row), tl.load(answers + row), position)
        masses = weights.to(tl.float64)
        target = number * tl.sum(masses, 0)
        below = tl.cumsum(masses, 0)
        tile = tl.minimum(tl.sum((below <= target).to(tl.int32), 0), tiles - 1)
        target -= tl.sum(tl.where(t < tile, masses, 0.0), 0)
        i = tile * TILE + tl.arange(0, TILE)
        score = _load_scores(line, tile, logits, line_peaks, borders, stride, vocab, FILTERED, TILE)
        inside = tl.exp(score / temperature - peak).to(tl.float64)
        inner = tl.cumsum(inside, 0)
        # strictly above the target: a token of probability zero adds nothing and is never hit; where
        # rounding leaves none, the last token that can be drawn
        last = tl.max(tl.where(inside > 0.0, i, 0), 0)
        token = tl.minimum(tile * TILE + tl.sum((inner <= target).to(tl.int32), 0), last)
    ok = (total > 0.0) & (total < float("inf"))
    token = tl.where(ok, token, FAILED).to(tl.int32)
    tl.store(tokens + line, token)
    tl.store(last_tokens + row, tl.maximum(token, 0))
    if PENALISED:
        kept = tl.load(penalised + row) > 0.0
        at = row.to(tl.int64) * vocab + tl.maximum(token, 0)
        tl.store(seen + at, 1, mask=kept)
        tl.store(counts + at, tl.load(counts + at, mask=kept, other=0.0) + 1.0, mask=kept)


def sample(
    logits: Tensor,
    rows: Tensor,
    positions: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    answers: Tensor,
    last_tokens: Tensor,
    tokens: Tensor,
    *,
    bounds: Bounds | None = None,
    penalised: Tensor | None = None,
    history: History | None = None,
) -> None:
    """Choose the next token of each line.

    Args:
        logits: [lines, vocab].
        rows: int32 [lines], table row of each line.
        positions: int32 [lines], place in its sequence of the token that the line follows.
        temperatures: float32 [rows], 0 for the likeliest token.
        seeds, answers: int64 [rows].
        last_tokens: int32 [rows]; the chosen token is written there too.
        tokens: int32 [lines], overwritten with the tokens; `FAILED` where the scores are not finite.
        bounds: what filters keep; None where no line has one.
        penalised: float32 [rows], not 0 for the rows that `history` is kept of.
        history: is told of the tokens; None where no line has one.
    """
    lines, vocab = logits.shape
    tiles = -(-vocab // _TILE)
    device = logits.device
    peaks = torch.empty((lines, tiles), dtype=torch.float32, device=device)
    sums = torch.empty_like(peaks)
    bests = torch.empty((lines, tiles), dtype=torch.int32, device=device)
    nothing = peaks  # in place of what the kernels do not look at
    kept = (nothing, nothing) if bounds is None else (bounds.peaks, bounds.borders)
    marks = (nothing,) * 3 if history is None else (penalised, history.seen.view(torch.uint8), history.counts)
    options = {"FILTERED": bounds is not None, "TILE": _TILE, "num_warps": 8, **launch_options(device)}
    _summarise[(lines, tiles)](
        logits, rows, temperatures, *kept, peaks, sums, bests, logits.stride(0), vocab, tiles, **options
    )
    _choose[(lines,)](
        logits, rows, positions, temperatures, seeds, answers, *kept, peaks, sums, bests,
        tokens, last_tokens, *marks, logits.stride(0), vocab, tiles,
        PENALISED=history is not None, TILES=next_power_of_two(tiles), FAILED=FAILED, **options,
    )  # fmt: skip
