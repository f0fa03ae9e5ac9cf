"""Norms, in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options, next_power_of_two


@triton.jit
def inverse_rms(row, size, eps):
    """``1 / rms(row)`` of float32 numbers, zeros behind the first `size`."""
    return tl.rsqrt(tl.sum(row * row, 0) / size + eps)


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
    # rounded before the weight is applied, as the reference does
    value = value.to(y.dtype.element_ty).to(tl.float32) * w
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
