"""Rows of the embedding, by a kernel that lets the first product begin to read its weights."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options, next_power_of_two


@triton.jit
def _embed(token_ids, weight, y, SIZE: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr):
    """Program (token, tile of its row)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    row = weight + tl.load(token_ids + token).to(tl.int64) * SIZE
    tl.store(y + token * SIZE + i, tl.load(row + i, mask=i < SIZE), mask=i < SIZE)


def embed(token_ids: Tensor, weight: Tensor) -> Tensor:
    """``weight[token_ids]``.

    Args:
        token_ids: integers [tokens], contiguous.
        weight: [vocab, size], contiguous.

    Returns:
        [tokens, size].
    """
    tokens, size = len(token_ids), weight.shape[1]
    y = torch.empty((tokens, size), dtype=weight.dtype, device=weight.device)
    tile = min(next_power_of_two(size), 2_048)
    _embed[(tokens, triton.cdiv(size, tile))](
        token_ids, weight, y, SIZE=size, TILE=tile, num_warps=4, **launch_options(weight.device)
    )
    return y
