"""Greedy choice and sampling of a whole batch in two kernels, without a look by the host.

A token is drawn as the greatest of score / temperature + Gumbel noise, of the integers that
`server.sampling.random` defines. The first kernel reads the logits once and finds the best token of each tile
of the vocabulary; the second takes the best of those.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import INTERPRETED, launch_options, next_power_of_two
from server.sampling.random import ROUNDS
from server.sampling.triton.filters import Bounds

FAILED = -1
"""Stands for the token of a line whose scores are not finite."""

_TILE = 4096

_COMPILED = tl.constexpr(not INTERPRETED)


@triton.jit
def _log(x):
    """Taken twice a token: by an instruction of the GPU, where `tl.log` is some twenty."""
    if _COMPILED:
        return libdevice.fast_logf(x)
    else:  # noqa: RET505 - for Triton the two are in place of each other
        return tl.log(x)


@triton.jit
def _gumbel(word):
    """float32 noise of 32-bit words, to within some 1e-6.

    Where u is near 1, log(u) is small and counts with all digits: there it comes from 1 - u, by its series.
    """
    rest = (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 1 - u
    u = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    series = rest * (1.0 + rest * (1.0 / 2.0 + rest * (1.0 / 3.0 + rest * (1.0 / 4.0))))
    return -_log(tl.where(rest < 0.03125, series, -_log(u)))


@triton.jit
def _load_score(at, i, peak, border, vocab, FILTERED: tl.constexpr):
    """float32 scores; -inf for what filters exclude and behind the vocabulary, inf for what is no number."""
    score = tl.load(at + i, mask=i < vocab, other=float("-inf")).to(tl.float32)
    if FILTERED:  # what is not a number is not excluded: it shall be found out
        score = tl.where(peak - score > border, float("-inf"), score)
    return tl.where(score == score, score, float("inf"))


@triton.jit
def _better(best, token, score, i):
    """The better of two candidates for each place: of equals the first."""
    return tl.where(score > best, score, best), tl.where(score > best, i, token)


@triton.jit
def _draw_in_tile(
    logits, slots, positions, temperatures, seeds, answers, peaks, borders, values, tokens,
    stride, vocab, tiles,
    FILTERED: tl.constexpr, ROUNDS: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line, tile of the vocabulary). A place stands for the four tokens of a counter."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line, tile = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + line)
    temperature = tl.load(temperatures + slot)
    at = logits + line.to(tl.int64) * stride
    peak, border = 0.0, 0.0
    if FILTERED:
        peak, border = tl.load(peaks + line), tl.load(borders + line)
    place = tl.arange(0, TILE // 4)
    i = tile * TILE + place // 16 * 64 + place % 16
    best = _load_score(at, i, peak, border, vocab, FILTERED)
    second = _load_score(at, i + 16, peak, border, vocab, FILTERED)
    third = _load_score(at, i + 32, peak, border, vocab, FILTERED)
    fourth = _load_score(at, i + 48, peak, border, vocab, FILTERED)
    if temperature > 0.0:
        counter = tile * (TILE // 4) + place
        position, answer = tl.load(positions + line) + 1, tl.load(answers + slot).to(tl.int32)
        word0, word1, word2, word3 = tl.philox(tl.load(seeds + slot), counter, position, answer, 0, ROUNDS)
        scale = 1.0 / temperature
        best = best * scale + _gumbel(word0)
        second = second * scale + _gumbel(word1)
        third = third * scale + _gumbel(word2)
        fourth = fourth * scale + _gumbel(word3)
    token = i
    best, token = _better(best, token, second, i + 16)
    best, token = _better(best, token, third, i + 32)
    best, token = _better(best, token, fourth, i + 48)
    value = tl.max(best, 0)
    tl.store(values + line * tiles + tile, value)
    tl.store(tokens + line * tiles + tile, tl.min(tl.where(best == value, token, vocab), 0))


@triton.jit
def _draw_in_line(
    slots, positions, temperatures, values, candidates, tokens, table, tiles, length,
    TILES: tl.constexpr, FAILED: tl.constexpr, KEEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0)
    slot = tl.load(slots + line)
    position = tl.load(positions + line).to(tl.int64) + 1
    t = tl.arange(0, TILES)
    value = tl.load(values + line * tiles + t, mask=t < tiles, other=float("-inf"))
    best = tl.max(value, 0)
    tile = tl.min(tl.where((value == best) & (t < tiles), t, tiles - 1), 0)
    token = tl.load(candidates + line * tiles + tile)
    ok = (best > float("-inf")) & (best < float("inf")) & (tl.load(temperatures + slot) >= 0.0)
    token = tl.where(ok, token, FAILED)
    tl.store(tokens + line, token)
    if KEEP:
        tl.store(table + slot.to(tl.int64) * length + position, tl.maximum(token, 0))


def sample(
    logits: Tensor,
    slots: Tensor,
    positions: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    answers: Tensor,
    table: Tensor,
    tokens: Tensor,
    *,
    bounds: Bounds | None = None,
    keep: bool = True,
) -> None:
    """Choose the next token of each line.

    Args:
        logits: [lines, vocab].
        slots: int32 [lines].
        positions: int32 [lines], place in its sequence of the token that the line follows.
        temperatures: float32 [slots], 0 for the likeliest token, negative for none.
        seeds, answers: int64 [slots].
        table: int32 [slots, length], contiguous.
        tokens: int32 [lines], overwritten with the tokens; `FAILED` where the scores are not finite.
        bounds: what filters keep; None where no line has one.
        keep: write the tokens to their places in the table, too.
    """
    lines, vocab = logits.shape
    tiles = -(-vocab // _TILE)
    values = torch.empty((lines, tiles), dtype=torch.float32, device=logits.device)
    candidates = torch.empty((lines, tiles), dtype=torch.int32, device=logits.device)
    kept = (values, values) if bounds is None else (bounds.peaks, bounds.borders)
    options = launch_options(logits.device)
    _draw_in_tile[(lines, tiles)](
        logits, slots, positions, temperatures, seeds, answers, *kept, values, candidates,
        logits.stride(0), vocab, tiles,
        FILTERED=bounds is not None, ROUNDS=ROUNDS, TILE=_TILE, num_warps=8, **options,
    )  # fmt: skip
    _draw_in_line[(lines,)](
        slots, positions, temperatures, values, candidates, tokens, table, tiles, table.stride(0),
        TILES=next_power_of_two(tiles), FAILED=FAILED, KEEP=keep, num_warps=1, **options,
    )  # fmt: skip
