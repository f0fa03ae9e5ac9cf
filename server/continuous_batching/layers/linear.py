"""Linear layers whose weights are filled from a checkpoint, several projections in one product."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WeightMap = dict[str, Tensor]
"""Checkpoint tensor name → the tensor (often a slice of a fused one) to copy it into."""


def empty_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """An uninitialised parameter; the loader fills it."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)


class Linear(nn.Module):
    """``y = x Wᵀ + b`` for one or several projections of the same input.

    Args:
        inputs: features of x.
        outputs: features of each projection; their weights are stacked in this order.
        bias: whether the projections have one.
    """

    def __init__(
        self, inputs: int, *outputs: int, bias: bool = False, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.weight = empty_parameter(sum(outputs), inputs, dtype=dtype, device=device)
        self.bias = empty_parameter(sum(outputs), dtype=dtype, device=device) if bias else None

    def weights(self, *names: str) -> WeightMap:
        """Where the checkpoint's projections `names` go, one name per projection."""
        found: WeightMap = {}
        for name, weight in zip(names, torch.split(self.weight.data, list(self.outputs)), strict=True):
            found[f"{name}.weight"] = weight
        if self.bias is not None:
            for name, bias in zip(names, torch.split(self.bias.data, list(self.outputs)), strict=True):
                found[f"{name}.bias"] = bias
        return found

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, inputs] → [tokens, sum(outputs)]."""
        return functional.linear(x, self.weight, self.bias)
