"""Norms, in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options, next_power_of_two

_NUMBERS = 1024
"""Of a program that normalises heads."""


@triton.jit
def inverse_rms(row, size, eps):
    """``1 / rms(row)`` of float32 numbers, zeros behind the first `size`."""
    return tl.rsqrt(tl.sum(row * row, 0) / size + eps)


@triton.jit
def _weighted(value, weight, WEIGHTS: tl.constexpr, DTYPE: tl.constexpr):
    """float32 `value` times its weight, as `RMSNorm.scaled` rounds: before, where both have one type."""
    if WEIGHTS == DTYPE:
        value = value.to(DTYPE).to(tl.float32)
    return value * weight


@triton.jit
def _rms_norm(x, weight, y, stride, eps, SIZE: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr):
    """Program (row)."""
    if PDL:
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, TILE)
    w = tl.load(weight + i, mask=i < SIZE, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    value = tl.load(x + row * stride + i, mask=i < SIZE, other=0.0).to(tl.float32)
    value *= inverse_rms(value, SIZE, eps)
    value = _weighted(value, w, weight.dtype.element_ty, y.dtype.element_ty)
    tl.store(y + row * SIZE + i, value.to(y.dtype.element_ty), mask=i < SIZE)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, overlapped: bool = True, warps: int | None = None
) -> Tensor:
    """``x / rms(x) · weight``: [rows, size] → the same, contiguous.

    Args:
        overlapped: `launch_options`.
        warps: of a program, which the order of the sum depends on; None: as the size wants it.
    """
    rows, size = x.shape
    y = torch.empty((rows, size), dtype=x.dtype, device=x.device)
    tile = next_power_of_two(size)
    _rms_norm[(rows,)](
        x, weight, y, x.stride(0), eps,
        SIZE=size, TILE=tile, num_warps=warps or min(max(tile // 512, 1), 8),
        **launch_options(x.device, overlapped=overlapped),
    )  # fmt: skip
    return y


@triton.jit
def _head_norm(
    x, weight, y, token_stride, head_stride, weight_stride, eps,
    HEADS: tl.constexpr, HEADS_TILE: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (token, tile of heads)."""
    if PDL:
        gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    head, i = tl.program_id(1) * HEADS_TILE + tl.arange(0, HEADS_TILE), tl.arange(0, TILE)
    mask = (head < HEADS)[:, None] & (i < SIZE)[None, :]
    w = tl.load(weight + head[:, None] * weight_stride + i[None, :], mask=mask, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    at = x + token * token_stride + head[:, None] * head_stride + i[None, :]
    value = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 1) / SIZE + eps)[:, None]
    value = _weighted(value, w, weight.dtype.element_ty, y.dtype.element_ty)
    at = y + (token * HEADS + head[:, None]) * SIZE + i[None, :]
    tl.store(at, value.to(y.dtype.element_ty), mask=mask)


def head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / rms(x) · weight`` of each head: [tokens, heads, size] → the same, contiguous.

    Args:
        x: tokens may be apart (a slice of a joint projection).
        weight: [size], or [heads, size].
    """
    tokens, heads, size = x.shape
    y = torch.empty((tokens, heads, size), dtype=x.dtype, device=x.device)
    tile = next_power_of_two(size)
    heads_tile = min(next_power_of_two(heads), max(_NUMBERS // tile, 1))
    warps = min(max(heads_tile * tile // 512, 1), 4)
    _head_norm[(tokens, -(-heads // heads_tile))](
        x, weight, y, x.stride(0), x.stride(1), weight.stride(0) if weight.dim() > 1 else 0, eps,
        HEADS=heads, HEADS_TILE=heads_tile, SIZE=size, TILE=tile, num_warps=warps,
        **launch_options(x.device),
    )  # fmt: skip
    return y
