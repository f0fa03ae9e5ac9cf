"""Codes in int32 words, as AutoGPTQ lays them out.

A word holds ``32 / bits`` codes, the first in its lowest bits. In `qweight` [inputs / n, outputs]
they are neighbours along the inputs, in `qzeros` [groups, outputs / n] along the outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unpack_rows(words: Tensor, bits: int) -> Tensor:
    """int32 [rows / n, columns] → uint8 [rows, columns]."""
    codes = _unpack(words.unsqueeze(1), bits, dim=1)
    return codes.flatten(0, 1)


def unpack_columns(words: Tensor, bits: int) -> Tensor:
    """int32 [rows, columns / n] → uint8 [rows, columns]."""
    return _unpack(words.unsqueeze(2), bits, dim=2).flatten(1, 2)


def _unpack(words: Tensor, bits: int, dim: int) -> Tensor:
    mask = (1 << bits) - 1
    return torch.cat([((words >> shift) & mask).to(torch.uint8) for shift in range(0, 32, bits)], dim)


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """uint8 [rows, columns] → int32 [rows / n, columns]; the inverse of `unpack_rows`."""
    return _pack(codes.reshape(-1, 32 // bits, codes.shape[1]), bits, dim=1)


def pack_columns(codes: Tensor, bits: int) -> Tensor:
    """uint8 [rows, columns] → int32 [rows, columns / n]; the inverse of `unpack_columns`."""
    return _pack(codes.reshape(codes.shape[0], -1, 32 // bits), bits, dim=2)


def _pack(codes: Tensor, bits: int, dim: int) -> Tensor:
    parts = codes.unbind(dim)
    words = torch.zeros_like(parts[0], dtype=torch.int32)
    for place, part in enumerate(parts):
        words |= part.to(torch.int32) << (place * bits)
    return words


def shift_zeros(words: Tensor, bits: int, offset: int) -> Tensor:
    """Add `offset` to every code of packed zero points, as one addition of words.

    Format v1 stores zero points less one, subtracted from whole words: where a code was 0 the
    subtraction borrowed from its neighbour, which this addition carries back.
    """
    ones = sum(1 << shift for shift in range(0, 32, bits))
    wide = (words.to(torch.int64) + offset * ones) & 0xFFFFFFFF
    return torch.where(wide >= 1 << 31, wide - (1 << 32), wide).to(torch.int32)
