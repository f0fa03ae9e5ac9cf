"""Matrices of experts that stay in MXFP4: codes of 4 bits, 32 of which share a power of two."""

from __future__ import annotations

import torch
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.layers.expert_stack import ExpertStack

BLOCK = 32
"""Numbers that share a scale."""
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Code → number (E2M1)."""
LARGEST_SCALE = 128
"""That kernels take, as it is stored: what is larger stands for weights above 12, which no model has."""
_BIAS = 127
"""Of the exponents in which scales are stored (E8M0)."""


def dequantize(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of one matrix.

    Args:
        blocks: uint8 [outputs, n, 16], two codes a byte, the first in its lower half.
        scales: uint8 [outputs, n].

    Returns:
        `dtype` [outputs, 32 n].
    """
    levels = torch.tensor(LEVELS, device=blocks.device)
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2)
    numbers = torch.ldexp(levels[codes.int()], scales.int()[..., None] - _BIAS)
    return numbers.flatten(1).to(dtype)


class Microscaled(ExpertStack):
    """The matrices of all experts in MXFP4.

    Attributes:
        blocks: uint8 [experts, outputs, inputs / 32, 16].
        scales: uint8 [experts, outputs, inputs / 32].
    """

    format_name = "mxfp4"
    blocks: Tensor
    scales: Tensor

    def __init__(
        self, experts: int, outputs: int, inputs: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__((experts, outputs, inputs), dtype)
        groups = (experts, outputs, inputs // BLOCK)
        self.register_buffer("blocks", torch.zeros(*groups, BLOCK // 2, dtype=torch.uint8, device=device))
        self.register_buffer("scales", torch.zeros(groups, dtype=torch.uint8, device=device))

    def settle(self, device: torch.device) -> None:
        if device.type == "cuda" and (largest := int(self.scales.max())) > LARGEST_SCALE:
            raise ModelError(
                f"a scale of experts in MXFP4 is 2**{largest - _BIAS}, but kernels take at most "
                f"2**{LARGEST_SCALE - _BIAS}"
            )

    def __getitem__(self, expert: int) -> Tensor:
        """The matrix of an expert, in floats."""
        return dequantize(self.blocks[expert], self.scales[expert], self.dtype)
