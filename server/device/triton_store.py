"""Copies of a few elements by a kernel, which can also write to pinned memory of the host."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options

_TILE = 128


@triton.jit(do_not_specialize=["size"])
def _store(values, target, size, TILE: tl.constexpr, PDL: tl.constexpr):
    """Program (tile)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(target + i, tl.load(values + i, mask=i < size), mask=i < size)


def store(values: Tensor, target: Tensor) -> None:
    """Copy `values` to `target`, of the same type and size; both are contiguous."""
    size = values.numel()
    _store[(triton.cdiv(size, _TILE),)](
        values, target, size, TILE=_TILE, num_warps=4, **launch_options(values.device)
    )
