"""Weights of 8 bits and the scales that they are multiplied by."""

from __future__ import annotations

import torch
from torch import Tensor

Block = tuple[int, int]
"""Outputs and inputs that share a scale."""
_ROWS = 1024
"""Outputs that are dequantized at once."""


def multiply(stored: Tensor, scales: Tensor, block: Block | None, dtype: torch.dtype) -> Tensor:
    """``stored · scale``: [outputs, inputs] of `dtype`; the only rounding is the last.

    Args:
        scales: one number, one for each output, or [n, m] for blocks, the last ones cut off.
    """
    outputs, inputs = stored.shape
    wide = scales.float().reshape(-1, 1) if scales.ndim < 2 else scales.float()
    height, width = shared((outputs, inputs), tuple(wide.shape), block)
    across = wide.repeat_interleave(width, 1)[:, :inputs] if wide.shape[1] > 1 else wide
    found = torch.empty(outputs, inputs, dtype=dtype, device=stored.device)
    for start in range(0, outputs, _ROWS):
        rows = torch.arange(start, min(start + _ROWS, outputs), device=stored.device)
        found[start : start + _ROWS] = stored[start : start + _ROWS].float() * across[rows // height]
    return found


def shared(matrix: tuple[int, ...], scales: tuple[int, ...], block: Block | None) -> Block:
    """Outputs and inputs that share a scale.

    Raises:
        ValueError: there are not as many scales as that takes.
    """
    if scales == (1, 1):
        return matrix[0], matrix[1]
    if scales == (matrix[0], 1) and block is None:
        return 1, matrix[1]
    if block is None:
        raise ValueError("the configuration does not say of which blocks")
    if scales != (-(-matrix[0] // block[0]), -(-matrix[1] // block[1])):
        raise ValueError(f"blocks are {block[0]} by {block[1]}")
    return block
