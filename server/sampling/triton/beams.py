"""The best continuations of beams: log-softmax, score so far and top-k, with one look at the logits.

The first kernel works on tiles of the vocabulary: each keeps its peak and its sum. The second lists the best
tokens of those tiles that can have some, best first: of `count` tokens, all are in the `count` tiles with the
greatest peaks. The third merges these lists.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options, next_power_of_two
from server.sampling.triton.filters import load_scores

_TILE = 4096


@triton.jit
def _weigh_tile(logits, peaks, sums, stride, vocab, tiles, TILE: tl.constexpr, PDL: tl.constexpr):
    """Program (line, tile of the vocabulary)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line, tile = tl.program_id(0), tl.program_id(1)
    score = load_scores(line, tile, logits, stride, vocab, TILE)
    peak = tl.max(score, 0)
    base = tl.where(peak == float("-inf"), 0.0, peak)  # a tile that is excluded weighs nothing
    tl.store(peaks + line * tiles + tile, peak)
    tl.store(sums + line * tiles + tile, tl.sum(tl.exp(score - base), 0))


@triton.jit(do_not_specialize=["count"])
def _best_of_tile(
    logits, peaks, values, tokens, stride, vocab, tiles, count,
    TILE: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line, tile of the vocabulary)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line, tile = tl.program_id(0), tl.program_id(1)
    t = tl.arange(0, TILES)
    all_peaks = tl.load(peaks + line * tiles + t, mask=t < tiles, other=float("-inf"))
    peak = tl.load(peaks + line * tiles + tile)
    if tl.sum(((all_peaks > peak) | ((all_peaks == peak) & (t < tile))).to(tl.int32), 0) >= count:
        return
    score, i = load_scores(line, tile, logits, stride, vocab, TILE), tl.arange(0, TILE)
    slot = (line * tiles + tile) * count
    for k in range(count):
        best, place = tl.max(score, 0, return_indices=True)
        tl.store(values + slot + k, best)
        tl.store(tokens + slot + k, tl.minimum(tile * TILE + place, vocab - 1))
        score = tl.where(i == place, float("-inf"), score)


@triton.jit(do_not_specialize=["count"])
def _best_of_line(
    peaks, sums, values, tokens, running, best_scores, best_tokens, tiles, count,
    TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0)
    t = tl.arange(0, TILES)
    tile_peaks = tl.load(peaks + line * tiles + t, mask=t < tiles, other=float("-inf"))
    tile_sums = tl.load(sums + line * tiles + t, mask=t < tiles, other=0.0)
    peak = tl.max(tile_peaks, 0)
    log_total = tl.log(tl.sum(tile_sums * tl.exp(tile_peaks - peak), 0))
    score = tl.load(running + line)
    slots = (line * tiles + t) * count
    taken = tl.zeros((TILES,), tl.int32)
    for k in range(count):
        heads = tl.load(values + slots + taken, mask=(t < tiles) & (taken < count), other=float("-inf"))
        best, tile = tl.max(heads, 0, return_indices=True)
        tile = tl.minimum(tile, tiles - 1)  # of scores that are not numbers any may be found
        place = tl.minimum(tl.sum(tl.where(t == tile, taken, 0), 0), count - 1)
        token = tl.load(tokens + (line * tiles + tile) * count + place)
        tl.store(best_scores + line * count + k, best - peak - log_total + score)
        tl.store(best_tokens + line * count + k, token)
        taken += (t == tile).to(tl.int32)


def best_continuations(logits: Tensor, running: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The likeliest next tokens of each line.

    Args:
        logits: [lines, vocab], as the model gave them.
        running: float32 [lines], accumulated log probability of each line's beam.
        count: how many to find, at most vocab.

    Returns:
        (accumulated log probabilities float32, tokens int32) [lines, count], best first; NaN where the
        scores are not finite.
    """
    lines, vocab = logits.shape
    tiles = -(-vocab // _TILE)
    peaks = torch.empty((lines, tiles), dtype=torch.float32, device=logits.device)
    sums = torch.empty_like(peaks)
    values = peaks.new_full((lines, tiles, count), float("-inf"))  # for tiles that list nothing
    tokens = torch.zeros_like(values, dtype=torch.int32)
    best_scores = peaks.new_empty((lines, count))
    best_tokens = tokens.new_empty((lines, count))
    options, room = launch_options(logits.device), next_power_of_two(tiles)
    _weigh_tile[(lines, tiles)](
        logits, peaks, sums, logits.stride(0), vocab, tiles, TILE=_TILE, num_warps=8, **options
    )
    _best_of_tile[(lines, tiles)](
        logits, peaks, values, tokens, logits.stride(0), vocab, tiles, count,
        TILE=_TILE, TILES=room, num_warps=8, **options,
    )  # fmt: skip
    _best_of_line[(lines,)](
        peaks, sums, values, tokens, running, best_scores, best_tokens, tiles, count,
        TILES=room, num_warps=1, **options,
    )  # fmt: skip
    return best_scores, best_tokens
