"""Top-k, top-p and min-p of a whole batch without sorting: how far below the peak a score may lie.

Each filter keeps what is at most some distance below the greatest score. Top-k and top-p find theirs by
narrowing: distances are counted and weighed in a few bins of equal width, the scores in the bins where the
borders lie are listed, and the list is searched until the border is one exact distance. The bins reach as
far as a border can lie: with top-k to the k-th best of the maxima of small groups, which is below at least
k scores and seldom below many more; else to where nothing has any weight.

Of equal scores at a border all are kept. Distances are taken in float32, so that scores count as equal
that differ by less than the rounding of their distance to the peak.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options, next_power_of_two
from server.sampling.triton.search import CHUNK, WAYS, mass_until, search

_TILE = 2048
_GROUP = 128
"""Scores of a tile that share a maximum."""
_BINS = 8

_REACH = tl.constexpr(20.0)
"""Distance over temperature beyond which all share the last bin: e^-20 of the peak's probability."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the filters keep: scores not further than `borders` below `peaks`.

    Attributes:
        peaks: float32 [lines], greatest score of lines that have filters.
        borders: float32 [lines], infinite where a line has no filter.
    """

    peaks: Tensor
    borders: Tensor


@triton.jit
def _filters_of(line, slots, filters, num_slots):
    """(temperature, top-k, top-p, min-p) of a line; 0 for a filter that is off."""
    at = filters + tl.load(slots + line)
    return tl.load(at), tl.load(at + num_slots), tl.load(at + 2 * num_slots), tl.load(at + 3 * num_slots)


@triton.jit
def load_scores(line, tile, logits, stride, vocab, TILE: tl.constexpr):
    """float32 scores; -inf behind the vocabulary's end."""
    i = tile * TILE + tl.arange(0, TILE)
    at = logits + line.to(tl.int64) * stride + i
    return tl.load(at, mask=i < vocab, other=float("-inf")).to(tl.float32)


@triton.jit
def _bins_of(distance, line, tile, reaches, top_k, vocab, BINS: tl.constexpr, TILE: tl.constexpr):
    """The bin of each distance of a tile; -1 for what cannot be at a border."""
    reach = tl.load(reaches + line)
    scale = 1.0 / tl.maximum(reach / BINS, 1e-30)
    bins = tl.minimum(distance * scale, BINS - 1.0).to(tl.int32)  # a product keeps the order
    i = tile * TILE + tl.arange(0, TILE)
    limit = tl.where(top_k > 0.0, reach, float("inf"))
    return tl.where((i < vocab) & (distance <= limit), bins, -1)


@triton.jit
def _find_maxima(
    logits, slots, filters, maxima, lows, stride, vocab, tiles, num_slots,
    TILE: tl.constexpr, GROUP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line, tile of the vocabulary): maximum of each group, lowest finite score of the tile."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line, tile = tl.program_id(0), tl.program_id(1)
    _, top_k, top_p, min_p = _filters_of(line, slots, filters, num_slots)
    if (top_k > 0.0) | (top_p > 0.0) | (min_p > 0.0):
        score = load_scores(line, tile, logits, stride, vocab, TILE)
        groups = tl.max(tl.reshape(score, [TILE // GROUP, GROUP]), 1)
        tl.store(maxima + (line * tiles + tile) * (TILE // GROUP) + tl.arange(0, TILE // GROUP), groups)
        low = tl.min(tl.where(score == float("-inf"), float("inf"), score), 0)
        tl.store(lows + line * tiles + tile, low)


@triton.jit
def _measure(
    slots, filters, maxima, lows, peaks, reaches, vocab, tiles, num_slots,
    PER_TILE: tl.constexpr, GROUP: tl.constexpr, REACH: tl.constexpr,
    WAYS: tl.constexpr, CHUNK: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line): the greatest score, and how far below it a border can lie."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0)
    temperature, top_k, top_p, min_p = _filters_of(line, slots, filters, num_slots)
    if (top_k > 0.0) | (top_p > 0.0) | (min_p > 0.0):
        t, g = tl.arange(0, TILES), tl.arange(0, TILES * PER_TILE)
        groups = tl.cdiv(vocab, GROUP)
        maxima += line * tiles * PER_TILE
        peak = tl.max(tl.load(maxima + g, mask=g < groups, other=float("-inf")), 0)
        reach = peak - tl.min(tl.load(lows + line * tiles + t, mask=t < tiles, other=float("inf")), 0)
        if (top_k > 0.0) & (top_k <= groups.to(tl.float32)):
            kth = search(maxima, groups, peak, 0.0, top_k, temperature, False, WAYS, CHUNK)
            reach = tl.minimum(reach, kth)
        if top_k <= 0.0:
            reach = tl.minimum(reach, temperature * REACH)
        tl.store(peaks + line, peak)
        tl.store(reaches + line, tl.maximum(reach, 0.0))


@triton.jit
def _tally(
    logits, slots, filters, peaks, reaches, counts, masses, stride, vocab, tiles, num_slots,
    BINS: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line, tile): how many scores are in each bin, and their weight where that is asked for."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line, tile = tl.program_id(0), tl.program_id(1)
    temperature, top_k, top_p, _ = _filters_of(line, slots, filters, num_slots)
    if (top_k > 0.0) | (top_p > 0.0):
        score = load_scores(line, tile, logits, stride, vocab, TILE)
        distance = tl.abs(tl.load(peaks + line) - score)  # 0 of zeros of either sign
        bins = _bins_of(distance, line, tile, reaches, top_k, vocab, BINS, TILE)
        slot = (line * tiles + tile) * BINS
        for b in tl.static_range(BINS):
            tl.store(counts + slot + b, tl.sum((bins == b).to(tl.int32), 0))
        if top_p > 0.0:
            weight = tl.exp(-distance / temperature)
            for b in tl.static_range(BINS):
                tl.store(masses + slot + b, tl.sum(tl.where(bins == b, weight, 0.0), 0))


@triton.jit
def _narrow(
    slots, filters, counts, masses, edges, offsets, before_counts, before_masses, totals, tiles, num_slots,
    BINS: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line): the bins of the first and the last border; where each tile lists what is in them."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0)
    _, top_k, top_p, _ = _filters_of(line, slots, filters, num_slots)
    if (top_k > 0.0) | (top_p > 0.0):
        t, b = tl.arange(0, TILES), tl.arange(0, BINS)
        at = (line * tiles + t[:, None]) * BINS + b[None, :]
        count = tl.load(counts + at, mask=t[:, None] < tiles, other=0)
        of_bin = tl.sum(count, 0)
        until = tl.cumsum(of_bin, 0).to(tl.float32)
        limit = tl.where(top_k > 0.0, top_k, float("inf"))
        last = tl.minimum(tl.sum((until < limit).to(tl.int32), 0), BINS - 1)
        first = last
        if top_p > 0.0:
            mass = tl.sum(tl.load(masses + at, mask=t[:, None] < tiles, other=0.0), 0)
            mass_until = tl.cumsum(mass, 0)
            # top-p is of what top-k keeps, which is not known yet: at least what lies before the bin of
            # top-k's border, so that top-p's border is not before the bin where that much would put it
            surely = tl.sum(tl.where(b < tl.where(top_k > 0.0, last, BINS), mass, 0.0), 0)
            first = tl.minimum(tl.sum((mass_until < top_p * surely).to(tl.int32), 0), last)
            if top_k <= 0.0:
                last = first
            tl.store(before_masses + line, tl.sum(tl.where(b < first, mass, 0.0), 0))
            tl.store(totals + line, surely)
        of_tile = tl.sum(tl.where((b[None, :] >= first) & (b[None, :] <= last), count, 0), 1)
        tl.store(offsets + line * (tiles + 1) + 1 + t, tl.cumsum(of_tile, 0), mask=t < tiles)
        tl.store(offsets + line * (tiles + 1), 0)
        tl.store(before_counts + line, tl.sum(tl.where(b < first, of_bin, 0), 0))
        tl.store(edges + 2 * line, first)
        tl.store(edges + 2 * line + 1, last)


@triton.jit
def _list(
    logits, slots, filters, peaks, reaches, edges, offsets, listed, stride, vocab, tiles, num_slots,
    BINS: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line, tile): writes the scores among which the borders are."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line, tile = tl.program_id(0), tl.program_id(1)
    _, top_k, top_p, _ = _filters_of(line, slots, filters, num_slots)
    begin, end = (
        tl.load(offsets + line * (tiles + 1) + tile),
        tl.load(offsets + line * (tiles + 1) + tile + 1),
    )
    if ((top_k > 0.0) | (top_p > 0.0)) & (begin < end):
        score = load_scores(line, tile, logits, stride, vocab, TILE)
        distance = tl.abs(tl.load(peaks + line) - score)
        bins = _bins_of(distance, line, tile, reaches, top_k, vocab, BINS, TILE)
        chosen = (bins >= tl.load(edges + 2 * line)) & (bins <= tl.load(edges + 2 * line + 1))
        place = begin + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(listed + line.to(tl.int64) * vocab + place, score, mask=chosen & (place < end))


@triton.jit
def _find_borders(
    slots, filters, peaks, offsets, before_counts, before_masses, totals, listed, borders,
    vocab, tiles, num_slots,
    WAYS: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0)
    temperature, top_k, top_p, min_p = _filters_of(line, slots, filters, num_slots)
    border = float("inf")
    if (top_k > 0.0) | (top_p > 0.0):
        peak, length = tl.load(peaks + line), tl.load(offsets + line * (tiles + 1) + tiles)
        listed += line.to(tl.int64) * vocab
        if top_k > 0.0:
            before = tl.load(before_counts + line).to(tl.float32)
            border = search(listed, length, peak, before, top_k, temperature, False, WAYS, CHUNK)
        if top_p > 0.0:
            before, total = tl.load(before_masses + line), tl.load(totals + line)
            if top_k > 0.0:
                total = before + mass_until(listed, length, peak, border, temperature, CHUNK)
            target = top_p * total
            nucleus = search(listed, length, peak, before, target, temperature, True, WAYS, CHUNK)
            border = tl.minimum(border, nucleus)
    if min_p > 0.0:
        border = tl.minimum(border, -temperature * tl.log(min_p))
    tl.store(borders + line, border)


def find_bounds(logits: Tensor, slots: Tensor, filters: Tensor, room: Tensor) -> Bounds:
    """What top-k, top-p and min-p keep; top-p is of what top-k leaves, min-p of the peak.

    Args:
        logits: [lines, vocab].
        slots: int32 [lines].
        filters: float32 [4, slots], contiguous: temperature, top-k, top-p, min-p; 0 for a filter that
            is off.
        room: float32, as many as there are logits; overwritten.
    """
    lines, vocab = logits.shape
    device, tiles, per_tile = logits.device, triton.cdiv(vocab, _TILE), _TILE // _GROUP
    maxima = torch.empty((lines, tiles * per_tile), dtype=torch.float32, device=device)
    lows, peaks, reaches = maxima.new_empty((lines, tiles)), maxima.new_empty(lines), maxima.new_empty(lines)
    counts = torch.empty((lines, tiles, _BINS), dtype=torch.int32, device=device)
    masses = torch.empty_like(counts, dtype=torch.float32)
    edges, offsets = counts.new_empty((lines, 2)), counts.new_empty((lines, tiles + 1))
    before_counts = counts.new_empty(lines)
    before_masses, totals, borders = (maxima.new_empty(lines) for _ in range(3))
    tiled = {"TILE": _TILE, "num_warps": 4}
    searched = {"WAYS": WAYS, "CHUNK": CHUNK, "num_warps": 8}
    all_tiles = next_power_of_two(tiles)
    stride, num_slots, pdl = logits.stride(0), filters.shape[1], launch_options(device)
    _find_maxima[(lines, tiles)](
        logits, slots, filters, maxima, lows, stride, vocab, tiles, num_slots, GROUP=_GROUP, **tiled, **pdl
    )
    _measure[(lines,)](
        slots, filters, maxima, lows, peaks, reaches, vocab, tiles, num_slots,
        PER_TILE=per_tile, GROUP=_GROUP, REACH=_REACH, TILES=all_tiles, **searched, **pdl,
    )  # fmt: skip
    _tally[(lines, tiles)](
        logits, slots, filters, peaks, reaches, counts, masses, stride, vocab, tiles, num_slots,
        BINS=_BINS, **tiled, **pdl,
    )  # fmt: skip
    _narrow[(lines,)](
        slots, filters, counts, masses, edges, offsets, before_counts, before_masses, totals,
        tiles, num_slots, BINS=_BINS, TILES=all_tiles, num_warps=4, **pdl,
    )  # fmt: skip
    _list[(lines, tiles)](
        logits, slots, filters, peaks, reaches, edges, offsets, room, stride, vocab, tiles, num_slots,
        BINS=_BINS, **tiled, **pdl,
    )  # fmt: skip
    _find_borders[(lines,)](
        slots, filters, peaks, offsets, before_counts, before_masses, totals, room, borders,
        vocab, tiles, num_slots, **searched, **pdl,
    )  # fmt: skip
    return Bounds(peaks, borders)
