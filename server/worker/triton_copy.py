"""Copies of blocks within the cache's pool, when sequences that share a block go different ways."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options

_TILE = 4096


@triton.jit
def _copy_blocks(pool, pairs, size, TILE: tl.constexpr, PDL: tl.constexpr):
    """Program (pair, tile of the block)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    pair = pairs + 2 * tl.program_id(0)
    source, target = tl.load(pair), tl.load(pair + 1)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    tl.store(pool + target * size + i, tl.load(pool + source * size + i, mask=i < size), mask=i < size)


def copy_blocks(pool: Tensor, pairs: Tensor) -> None:
    """Copy blocks of `pool` [blocks, ...], which is contiguous.

    Args:
        pairs: int64 [pairs, 2], source and target; no block is both.
    """
    size = pool[0].numel()
    grid = len(pairs), triton.cdiv(size, _TILE)
    options = launch_options(pool.device)
    _copy_blocks[grid](pool, pairs, size, TILE=_TILE, num_warps=8, **options)
