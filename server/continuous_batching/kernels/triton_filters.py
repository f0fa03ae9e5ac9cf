"""Top-k, top-p and min-p of a whole batch without sorting: how far below the peak a score may lie.

Each filter keeps what is at most some distance below the greatest score. Top-k and top-p find theirs by
narrowing: distances are counted and weighed in a few bins of equal width, those in the bins where the
borders lie are listed, and the list is searched until the border is one exact distance. Of real
distributions few distances are left to search; where a distribution is flat it is still a fraction.

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

from server.continuous_batching.kernels.triton_support import launch_options, next_power_of_two

_TILE = 2048
_BINS = 8
_WAYS = 16
"""Into how many parts a round of the search divides what is left."""
_CHUNK = 512
"""Distances that the search looks at side by side."""

_REACH = tl.constexpr(20.0)
"""Distance over temperature beyond which all share the last bin: e^-20 of the peak's probability."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the filters keep: scores not further than `borders` below `peaks`.

    Attributes:
        peaks: float32 [lines], greatest score.
        borders: float32 [lines], infinite where a line has no filter.
    """

    peaks: Tensor
    borders: Tensor


@triton.jit
def _limits_of(line, rows, limits, num_rows):
    """(temperature, top-k, top-p, min-p) of a line; 0 for a filter that is off."""
    at = limits + tl.load(rows + line)
    return tl.load(at), tl.load(at + num_rows), tl.load(at + 2 * num_rows), tl.load(at + 3 * num_rows)


@triton.jit
def _peak_of(line, peaks, tiles, TILES: tl.constexpr):
    """The greatest score of a line, from those of its tiles."""
    t = tl.arange(0, TILES)
    return tl.max(tl.load(peaks + line * tiles + t, mask=t < tiles, other=float("-inf")), 0)


@triton.jit
def _distances(
    line, tile, logits, peaks, lows, temperature, stride, vocab, tiles,
    BINS: tl.constexpr, REACH: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """A tile's distances below the peak, and the bin of each: -1 for what is none."""
    t = tl.arange(0, TILES)
    peak = _peak_of(line, peaks, tiles, TILES)
    low = tl.min(tl.load(lows + line * tiles + t, mask=t < tiles, other=float("inf")), 0)
    width = tl.maximum(tl.minimum(temperature * REACH, peak - low) / BINS, 1e-30)
    i = tile * TILE + tl.arange(0, TILE)
    score = tl.load(logits + line.to(tl.int64) * stride + i, mask=i < vocab, other=float("-inf"))
    distance = peak - score.to(tl.float32)
    bins = tl.minimum(distance * (1.0 / width), BINS - 1.0).to(tl.int32)  # a product keeps the order
    return distance, tl.where((i < vocab) & (distance >= 0.0), bins, -1)


@triton.jit
def _find_peaks(
    logits, rows, limits, peaks, lows, stride, vocab, tiles, num_rows,
    TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line, tile of the vocabulary): its greatest score and its lowest finite one."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line, tile = tl.program_id(0), tl.program_id(1)
    _, top_k, top_p, min_p = _limits_of(line, rows, limits, num_rows)
    if (top_k > 0.0) | (top_p > 0.0) | (min_p > 0.0):
        i = tile * TILE + tl.arange(0, TILE)
        score = tl.load(logits + line.to(tl.int64) * stride + i, mask=i < vocab, other=float("-inf"))
        score = score.to(tl.float32)
        tl.store(peaks + line * tiles + tile, tl.max(score, 0))
        low = tl.min(tl.where(score == float("-inf"), float("inf"), score), 0)
        tl.store(lows + line * tiles + tile, low)


@triton.jit
def _tally(
    logits, rows, limits, peaks, lows, counts, masses, stride, vocab, tiles, num_rows,
    BINS: tl.constexpr, REACH: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line, tile): how many distances lie in each bin, and their weight where that is asked for."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line, tile = tl.program_id(0), tl.program_id(1)
    temperature, top_k, top_p, _ = _limits_of(line, rows, limits, num_rows)
    if (top_k > 0.0) | (top_p > 0.0):
        distance, bins = _distances(
            line, tile, logits, peaks, lows, temperature, stride, vocab, tiles, BINS, REACH, TILE, TILES
        )
        slot = (line * tiles + tile) * BINS
        for b in tl.static_range(BINS):
            tl.store(counts + slot + b, tl.sum((bins == b).to(tl.int32), 0))
        if top_p > 0.0:
            weight = tl.exp(-distance / temperature)
            for b in tl.static_range(BINS):
                tl.store(masses + slot + b, tl.sum(tl.where(bins == b, weight, 0.0), 0))


@triton.jit
def _narrow(
    rows, limits, counts, masses, edges, offsets, before_counts, before_masses, totals, tiles, num_rows,
    BINS: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line): the bins of the first and the last border; where each tile lists what is in them."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0)
    _, top_k, top_p, _ = _limits_of(line, rows, limits, num_rows)
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
            # what top-k keeps weighs between the bins before its border's and these with it
            surely = tl.sum(tl.where(b < tl.where(top_k > 0.0, last, BINS), mass, 0.0), 0)
            first = tl.minimum(tl.sum((mass_until < top_p * surely).to(tl.int32), 0), last)
            if top_k <= 0.0:
                last = first
            tl.store(before_masses + line, tl.sum(tl.where(b < first, mass, 0.0), 0))
            tl.store(totals + line, surely)
        listed = tl.sum(tl.where((b[None, :] >= first) & (b[None, :] <= last), count, 0), 1)
        tl.store(offsets + line * (tiles + 1) + 1 + t, tl.cumsum(listed, 0), mask=t < tiles)
        tl.store(offsets + line * (tiles + 1), 0)
        tl.store(before_counts + line, tl.sum(tl.where(b < first, of_bin, 0), 0))
        tl.store(edges + 2 * line, first)
        tl.store(edges + 2 * line + 1, last)


@triton.jit
def _list(
    logits, rows, limits, peaks, lows, edges, offsets, listed, stride, vocab, tiles, num_rows,
    BINS: tl.constexpr, REACH: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line, tile): writes the distances among which the borders are."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line, tile = tl.program_id(0), tl.program_id(1)
    temperature, top_k, top_p, _ = _limits_of(line, rows, limits, num_rows)
    begin, end = (
        tl.load(offsets + line * (tiles + 1) + tile),
        tl.load(offsets + line * (tiles + 1) + tile + 1),
    )
    if ((top_k > 0.0) | (top_p > 0.0)) & (begin < end):
        distance, bins = _distances(
            line, tile, logits, peaks, lows, temperature, stride, vocab, tiles, BINS, REACH, TILE, TILES
        )
        chosen = (bins >= tl.load(edges + 2 * line)) & (bins <= tl.load(edges + 2 * line + 1))
        place = begin + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(listed + line.to(tl.int64) * vocab + place, distance, mask=chosen)


@triton.jit
def _search(
    listed, length, before, target, temperature,
    MASS: tl.constexpr, WAYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The least listed distance up to which there are, or weigh, as much as `target`, with `before` in front.

    Distances are not negative: as integers they have the same order.
    """
    i, way = tl.arange(0, CHUNK), tl.arange(0, WAYS)
    least, greatest = tl.full((CHUNK,), 0x7FFFFFFF, tl.int32), tl.zeros((CHUNK,), tl.int32)
    for begin in range(0, length, CHUNK):
        bits = tl.load(listed + begin + i, mask=begin + i < length, other=0.0).to(tl.int32, bitcast=True)
        least = tl.minimum(least, tl.where(begin + i < length, bits, 0x7FFFFFFF))
        greatest = tl.maximum(greatest, bits)
    low, high = tl.min(least, 0), tl.max(greatest, 0)
    while low < high:
        width = (high - low) // WAYS + 1
        ends = low + width * (way + 1) - 1
        reached = tl.zeros((CHUNK, WAYS), tl.float32)
        for begin in range(0, length, CHUNK):
            distance = tl.load(listed + begin + i, mask=begin + i < length, other=float("inf"))
            weight = tl.where(begin + i < length, 1.0, 0.0)
            if MASS:
                weight *= tl.exp(-distance / temperature)
            inside = distance.to(tl.int32, bitcast=True)[:, None] <= ends[None, :]
            reached += tl.where(inside, weight[:, None], 0.0)
        short = tl.sum((before + tl.sum(reached, 0) < target).to(tl.int32), 0)
        low += width * tl.minimum(short, WAYS - 1)  # rounding may leave the target unreached
        high = tl.minimum(high, low + width - 1)
    return low.to(tl.float32, bitcast=True)


@triton.jit
def _mass_until(listed, length, border, temperature, CHUNK: tl.constexpr):
    """What the listed distances up to `border` weigh."""
    i = tl.arange(0, CHUNK)
    mass = tl.zeros((CHUNK,), tl.float32)
    for begin in range(0, length, CHUNK):
        distance = tl.load(listed + begin + i, mask=begin + i < length, other=float("inf"))
        mass += tl.where(distance <= border, tl.exp(-distance / temperature), 0.0)
    return tl.sum(mass, 0)


@triton.jit
def _find_borders(
    rows, limits, peaks, offsets, before_counts, before_masses, totals, listed, line_peaks, borders,
    vocab, tiles, num_rows,
    WAYS: tl.constexpr, CHUNK: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0)
    temperature, top_k, top_p, min_p = _limits_of(line, rows, limits, num_rows)
    peak, border = 0.0, float("inf")
    if (top_k > 0.0) | (top_p > 0.0) | (min_p > 0.0):
        peak = _peak_of(line, peaks, tiles, TILES)
    if (top_k > 0.0) | (top_p > 0.0):
        length = tl.load(offsets + line * (tiles + 1) + tiles)
        listed += line.to(tl.int64) * vocab
        if top_k > 0.0:
            before = tl.load(before_counts + line).to(tl.float32)
            border = _search(listed, length, before, top_k, temperature, False, WAYS, CHUNK)
        if top_p > 0.0:
            before, total = tl.load(before_masses + line), tl.load(totals + line)
            if top_k > 0.0:
                total = before + _mass_until(listed, length, border, temperature, CHUNK)
            nucleus = _search(listed, length, before, top_p * total, temperature, True, WAYS, CHUNK)
            border = tl.minimum(border, nucleus)
    if min_p > 0.0:
        border = tl.minimum(border, -temperature * tl.log(min_p))
    tl.store(line_peaks + line, peak)
    tl.store(borders + line, border)


def find_bounds(logits: Tensor, rows: Tensor, options: Tensor, room: Tensor) -> Bounds:
    """What top-k, top-p and min-p keep; top-p is of what top-k leaves, min-p of the peak.

    Args:
        logits: [lines, vocab].
        rows: int32 [lines], table row of each line.
        options: float32 [4, rows], contiguous: temperature, top-k, top-p, min-p; 0 for a filter that
            is off.
        room: float32, as many as there are logits; overwritten.
    """
    lines, vocab = logits.shape
    device, tiles = logits.device, triton.cdiv(vocab, _TILE)
    peaks = torch.empty((lines, tiles), dtype=torch.float32, device=device)
    lows = torch.empty_like(peaks)
    counts = torch.empty((lines, tiles, _BINS), dtype=torch.int32, device=device)
    masses = torch.empty_like(counts, dtype=torch.float32)
    edges = counts.new_empty((lines, 2))
    offsets = counts.new_empty((lines, tiles + 1))
    before_counts = counts.new_empty(lines)
    before_masses, totals, line_peaks, borders = (peaks.new_empty(lines) for _ in range(4))
    tiled = {"TILE": _TILE, "num_warps": 4}
    wide = {"BINS": _BINS, "TILES": next_power_of_two(tiles)}
    stride, num_rows, pdl = logits.stride(0), options.shape[1], launch_options(device)
    _find_peaks[(lines, tiles)](
        logits, rows, options, peaks, lows, stride, vocab, tiles, num_rows, **tiled, **pdl
    )
    _tally[(lines, tiles)](
        logits, rows, options, peaks, lows, counts, masses, stride, vocab, tiles, num_rows,
        REACH=_REACH, **wide, **tiled, **pdl,
    )  # fmt: skip
    _narrow[(lines,)](
        rows, options, counts, masses, edges, offsets, before_counts, before_masses, totals, tiles, num_rows,
        num_warps=4, **wide, **pdl,
    )  # fmt: skip
    _list[(lines, tiles)](
        logits, rows, options, peaks, lows, edges, offsets, room, stride, vocab, tiles, num_rows,
        REACH=_REACH, **wide, **tiled, **pdl,
    )  # fmt: skip
    _find_borders[(lines,)](
        rows, options, peaks, offsets, before_counts, before_masses, totals, room, line_peaks, borders,
        vocab, tiles, num_rows, WAYS=_WAYS, CHUNK=_CHUNK, TILES=wide["TILES"], num_warps=8, **pdl,
    )  # fmt: skip
    return Bounds(line_peaks, borders)
