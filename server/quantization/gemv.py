"""Products of one token: weights, floats or FP8, read at the memory's bandwidth, the neighbours fused in.

At batch 1 a product is as fast as its weights can be read. Each program loads its first tiles of weights
before it waits for the kernel in front (programmatic dependent launch), so that memory never falls idle
between kernels; norm, activation and residual ride along. FP8 units would gain nothing for one token: weights
in FP8 are multiplied in float32, and activations stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options, next_power_of_two


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is divided.

    Attributes:
        rows: of the weight, a program; where gate and up are joined, of each.
        columns: that are multiplied at a time.
        warps: of a program.
        ahead: tiles of so many columns that are loaded before the kernel in front has ended.
    """

    rows: int
    columns: int
    warps: int
    ahead: int = 1


@triton.jit
def _tile(weight, n, k, K: tl.constexpr, WHOLE: tl.constexpr):
    """A tile of weight rows; they are used once, so the cache need not keep them."""
    at = weight + n[:, None].to(tl.int64) * K + k[None, :]
    if WHOLE:
        return tl.load(at, eviction_policy="evict_first")
    return tl.load(at, mask=(k < K)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _first_tiles(weight, n, k, K: tl.constexpr, TILE: tl.constexpr, AHEAD: tl.constexpr):
    tiles = ()
    for i in tl.static_range(AHEAD):
        tiles = tiles + (_tile(weight, n, i * TILE + k, K, K % TILE == 0),)  # type: ignore[assignment]  # noqa: RUF005
    return tiles


@triton.jit
def _multiplied(w, value, scales, first, k, K: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of weights times `value`, by the scales of blocks where BLOCK says that there are some."""
    if BLOCK > 0:
        at = scales + (first // BLOCK) * (K // BLOCK) + k // BLOCK
        value *= tl.load(at, mask=k < K, other=0.0)
    return w.to(tl.float32) * value[None, :]


@triton.jit
def _stacked(a, b):
    """The rows of two tiles, one tile above the other."""
    return tl.reshape(tl.permute(tl.join(a, b), (2, 0, 1)), (2 * a.shape[0], a.shape[1]))


@triton.jit
def _halves(sums):
    """What belongs to each of two stacked tiles."""
    return tl.split(tl.permute(tl.reshape(sums, (2, sums.shape[0] // 2)), (1, 0)))


@triton.jit
def _sums(acc, acc_up, square, eps, K: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr):
    """(sum of each row, of each row of up, factor of the norm), in one reduction: warps synchronise once."""
    tile, up, shrink = acc, 0.0, 1.0
    if GATED:
        tile = _stacked(acc, acc_up)
    if NORM:
        out, square = _halves(tl.sum(_stacked(tile, tl.broadcast_to(square[None, :], tile.shape)), 1))
    else:
        out = tl.sum(tile, 1)
    if GATED:
        out, up = _halves(out)
    if NORM:
        if GATED:
            square, _ = _halves(square)
        shrink = tl.rsqrt(square / K + eps)
    return out, up, shrink


@triton.jit
def _scale_and_bias(scales, bias, n, BLOCK: tl.constexpr):
    """(scale, bias) of outputs `n`; 1 without scales or with those of blocks, 0 without bias."""
    scale, offset = 1.0, 0.0
    if scales is not None and BLOCK == 0:
        scale = tl.load(scales + n)
    if bias is not None:
        offset = tl.load(bias + n).to(tl.float32)
    return scale, offset


@triton.jit
def _gemv(
    x, norm, weight, scales, bias, residual, y, eps,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, AHEAD: tl.constexpr,
    BLOCK: tl.constexpr, GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of outputs). GATED: rows n and n + N of the weight are gate and up of output n.

    BLOCK: there is a scale for so many outputs and inputs; 0: one for each output, or none.
    """
    if PDL:
        gdc_launch_dependents()
    first = tl.program_id(0) * ROWS
    n = first + tl.arange(0, ROWS)
    k = tl.arange(0, TILE)
    tiles = _first_tiles(weight, n, k, K, TILE, AHEAD)
    scale, offset = _scale_and_bias(scales, bias, n, BLOCK)
    if GATED:
        up_tiles = _first_tiles(weight, n + N, k, K, TILE, AHEAD)
        up_scale, up_offset = _scale_and_bias(scales, bias, n + N, BLOCK)
    if PDL:
        gdc_wait()
    if residual is not None:  # loaded with x: after the sums its latency would come on top
        add = tl.load(residual + n).to(tl.float32)
    acc = tl.zeros([ROWS, TILE], tl.float32)
    acc_up = acc
    square = tl.zeros([TILE], tl.float32)
    for i in tl.static_range((K + TILE - 1) // TILE):
        kk = i * TILE + k
        value = tl.load(x + kk, mask=kk < K, other=0.0).to(tl.float32)
        if norm is not None:
            square += value * value
            value *= tl.load(norm + kk, mask=kk < K, other=0.0).to(tl.float32)
        w = tiles[i] if i < AHEAD else _tile(weight, n, kk, K, K % TILE == 0)
        acc += _multiplied(w, value, scales, first, kk, K, BLOCK)
        if GATED:
            w = up_tiles[i] if i < AHEAD else _tile(weight, n + N, kk, K, K % TILE == 0)
            acc_up += _multiplied(w, value, scales, first + N, kk, K, BLOCK)
    out, up, shrink = _sums(acc, acc_up, square, eps, K, norm is not None, GATED)
    out = out * (scale * shrink) + offset
    if GATED:
        out = out / (1.0 + tl.exp(-out)) * (up * (up_scale * shrink) + up_offset)
    if residual is not None:
        out += add
    tl.store(y + n, out.to(y.dtype.element_ty))


def tiling(outputs: int, inputs: int, *, gated: bool) -> Tiling | None:
    """Of floats; None: such a weight is not taken.

    From `benchmarks.gpu.divisions` on an H200: 32 to 96 weights a thread in flight keep its memory busy, if
    nearly every column has a weight.
    """
    if inputs % 16 or inputs > 32768:
        return None
    found = _gated_tiling(inputs) if gated else _plain_tiling(outputs, inputs)
    return replace(found, rows=gcd(found.rows, outputs))


def _plain_tiling(outputs: int, inputs: int) -> Tiling:
    if inputs <= 1024:
        return Tiling(4, next_power_of_two(inputs), 4)
    if inputs <= 2048:
        return Tiling(2, 2048, 4)
    if inputs > 4096 and _empty(inputs, 4096) < 0.04:
        return Tiling(2, 4096, 8)
    if _empty(inputs, 2048) < 0.1:
        return Tiling(2, 2048, 4) if 4096 < inputs <= 6144 else Tiling(4, 2048, 8, ahead=2)
    if inputs > 4096:
        return Tiling(4, 1024, 4, ahead=2)
    if outputs * inputs <= 10 << 20:  # the whole weight fits a GPU's registers
        return Tiling(2, 512, 2, ahead=min(-(-inputs // 512), 6))
    return Tiling(4, 512, 2, ahead=2)


def _gated_tiling(inputs: int) -> Tiling:
    if inputs <= 1024:
        return Tiling(2, next_power_of_two(inputs), 4)
    if inputs <= 2048:
        return Tiling(1, 2048, 4)
    if inputs <= 4096 and _empty(inputs, 4096) < 0.04:
        return Tiling(1, 4096, 8)
    if _empty(inputs, 2048) < 0.1:
        return Tiling(2, 2048, 8)
    if inputs > 4096:
        return Tiling(1, 1024, 4, ahead=5)
    if _empty(inputs, 1024) < 0.1:
        return Tiling(2, 1024, 4, ahead=3)
    return Tiling(1, 512, 2, ahead=min(-(-inputs // 512), 6))


def _empty(inputs: int, columns: int) -> float:
    """Padding of a weight's rows when they are read in tiles of `columns`, as a share of `inputs`."""
    return -inputs % columns / inputs


def float8_tiling(outputs: int, inputs: int, *, gated: bool) -> Tiling:
    """Of FP8, in sizes that are multiples of 16.

    From `benchmarks.gpu.fp8` on an H200. Each byte is a weight here, so that instructions count as much as
    bytes in flight: a thread has several columns, whose products it sums up itself, and several rows, which
    share what is done with x.
    """
    rows, columns, ahead = (4, 1024, 4) if gated else (8, 1024, 2) if inputs <= 8192 else (16, 512, 4)
    columns = min(columns, next_power_of_two(inputs))
    return Tiling(rows, columns, min(max(columns // 128, 1), 4), min(ahead, -(-inputs // columns)))


def gemv(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    block: int | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    shape: Tiling | None = None,
) -> Tensor:
    """One token times a weight.

    Args:
        x: [1, inputs], contiguous.
        weight: [outputs, inputs], contiguous; floats, or float8 whose sizes are multiples of 16.
        scales: of float8: float32, one for each output, or [outputs / block, inputs / block].
        bias: [outputs].
        norm: weight [inputs] of an RMS norm with `eps` that `x` goes through before.
        gated: the weight stacks gate and up, each of half its rows; the result is silu(gate) · up.
        residual: [1, outputs], is added and then holds the result.
        out: takes the result instead of new memory.
        shape: another than `tiling` or `float8_tiling` says.

    Returns:
        [1, outputs] ([1, outputs / 2] if `gated`).
    """
    inputs = weight.shape[1]
    outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    if shape is None:
        shape = (tiling if scales is None else float8_tiling)(outputs, inputs, gated=gated)
    assert shape is not None
    y = residual if residual is not None else out
    if y is None:
        y = torch.empty((1, outputs), dtype=x.dtype, device=x.device)
    _gemv[(outputs // shape.rows,)](
        x, norm, weight, scales, bias, residual, y, eps,
        N=outputs, K=inputs, ROWS=shape.rows, TILE=shape.columns, AHEAD=shape.ahead, BLOCK=block or 0,
        GATED=gated, num_warps=shape.warps, **launch_options(x.device),
    )  # fmt: skip
    return y
