"""Rows of activations in FP8: quantized in the kernel that makes them.

A row's scale is its greatest number by 448, that of FP8 (E4M3); or each 128 numbers of it have one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options, next_power_of_two

FLOAT8 = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class Rows:
    """Quantized rows: ``numbers · scales``.

    Attributes:
        numbers: float8 [rows, size].
        scales: float32 [rows, 1], or [rows, size / group].
    """

    numbers: Tensor
    scales: Tensor


@dataclass(frozen=True, slots=True)
class RowScales:
    """Where the scales of rows come from.

    Attributes:
        group: numbers that share one; None: the whole row does.
        static: float32 [1], the scale of all rows; None: each has its own.
        ceiling: numbers above it, in magnitude, become it; 0: there is none.
    """

    group: int | None = None
    static: Tensor | None = None
    ceiling: float = 0.0


@triton.jit
def _quantize(
    x, norm, static, y, scales, stride, eps, ceiling,
    SIZE: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (row). What stands before quantizing is rounded as a kernel of its own would write it."""
    if PDL:
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, TILE)
    within = i < SIZE
    if NORM:
        weight = tl.load(norm + i, mask=within, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    at = x + row * stride + i
    value = tl.load(at, mask=within, other=0.0).to(tl.float32)
    if NORM:
        value *= tl.rsqrt(tl.sum(value * value, 0) / SIZE + eps)
        value = value.to(x.dtype.element_ty).to(tl.float32) * weight
        value = value.to(x.dtype.element_ty).to(tl.float32)
    if GATED:
        up = tl.load(at + SIZE, mask=within, other=0.0).to(tl.float32)
        value = value / (1.0 + tl.exp(-value)) * up
        value = value.to(x.dtype.element_ty).to(tl.float32)
    if static is not None:
        scale = tl.load(static)
        tl.store(scales + row, scale)
        value /= scale
    elif GROUP == 0:
        most = tl.max(tl.abs(value), 0)
        if ceiling > 0.0:
            most = tl.minimum(most, ceiling)
        scale = tl.maximum(most, 1e-12) / 448.0
        tl.store(scales + row, scale)
        value /= scale
    else:
        parts = tl.reshape(value, (TILE // GROUP, GROUP))
        scale = tl.maximum(tl.max(tl.abs(parts), 1), 1e-12) / 448.0
        part = tl.arange(0, TILE // GROUP)
        tl.store(scales + row * (SIZE // GROUP) + part, scale, mask=part < SIZE // GROUP)
        value = tl.reshape(parts / scale[:, None], (TILE,))
    value = tl.minimum(tl.maximum(value, -448.0), 448.0)
    tl.store(y + row * SIZE + i, value.to(y.dtype.element_ty), mask=within)


def quantize(
    x: Tensor,
    by: RowScales,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    overlapped: bool = False,
) -> Rows:
    """Quantize [rows, size], or what is made of it.

    Args:
        x: floats, rows may be apart.
        norm: weight [size] of an RMS norm with `eps` that `x` goes through before.
        gated: x is gates and ups side by side, [rows, 2 × size]; ``silu(gate) · up`` is quantized.
        overlapped: `launch_options`.
    """
    rows, size = x.shape[0], x.shape[1] // 2 if gated else x.shape[1]
    y = torch.empty((rows, size), dtype=FLOAT8, device=x.device)
    parts = 1 if by.group is None else size // by.group
    scales = torch.empty((rows, parts), dtype=torch.float32, device=x.device)
    tile = next_power_of_two(size)
    _quantize[(rows,)](
        x, norm, by.static, y, scales, x.stride(0), eps, by.ceiling,
        SIZE=size, TILE=tile, GROUP=by.group or 0, NORM=norm is not None, GATED=gated,
        num_warps=min(max(tile // 1024, 1), 16), **launch_options(x.device, overlapped=overlapped),
    )  # fmt: skip
    return Rows(y, scales)
