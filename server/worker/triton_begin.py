"""What a captured step of decodes begins with, in one kernel: a step then needs one copy and one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _begin_decodes(
    rows, positions, known, places, blocks, tables, tokens, size, length, TILE: tl.constexpr
):  # fmt: skip
    """One program (tile of decodes)."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    place = tl.load(places + i, mask=i < size, other=-1)
    tl.store(tables + place, tl.load(blocks + i, mask=place >= 0), mask=place >= 0)
    row = tl.load(rows + i, mask=i < size, other=0).to(tl.int64)
    position = tl.maximum(tl.load(positions + i, mask=i < size, other=0), 0)  # that of padding is -1
    tl.store(tokens + i, tl.load(known + row * length + position), mask=i < size)


def begin_decodes(
    rows: Tensor, positions: Tensor, known: Tensor, places: Tensor, blocks: Tensor, tables: Tensor
) -> Tensor:
    """Write news of block tables and gather tokens.

    Args:
        rows: int32 [size], row of each decode.
        positions: int32 [size], place of each decode's token; -1 for padding.
        known: int32 [rows, length], contiguous: tokens of each row.
        places: int32 [size], places in the flat `tables` to write to, none of them twice; -1: nowhere.
        blocks: int32 [size], what to write there.
        tables: int32 [rows, blocks], contiguous.

    Returns:
        int32 [size]: ``known[rows, positions]``.
    """
    size = len(rows)
    tokens = torch.empty(size, dtype=torch.int32, device=rows.device)
    _begin_decodes[(triton.cdiv(size, 128),)](
        rows, positions, known, places, blocks, tables, tokens, size, known.stride(0), TILE=128, num_warps=4
    )
    return tokens
