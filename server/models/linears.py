"""Which kind of linear layer stands where in a model: plain, or as its checkpoint was quantized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from server.checkpoints.errors import ModelError
from server.layers.expert_stack import ExpertStack
from server.layers.linear import Linear, LinearLayer, empty_parameter
from server.quantization.formats.base import OpenFormat


class Linears(Protocol):
    """Makes the linear layers of a model, and the matrices of its experts."""

    def __call__(self, names: Sequence[str], inputs: int, *outputs: int, bias: bool = False) -> LinearLayer:
        """An empty layer for the checkpoint's projections `names`, which share their input.

        Args:
            outputs: features of each projection.
            bias: whether the architecture gives them one.
        """

    def stack(self, names: Sequence[str], *shape: int) -> nn.Parameter | ExpertStack:
        """Empty matrices of all experts, [experts, outputs, inputs].

        Args:
            names: what the checkpoint calls them: one name for all, or those of every expert in turn.
        """


@dataclass(frozen=True, slots=True)
class PlainLinears:
    """Layers of one type of float."""

    dtype: torch.dtype
    device: torch.device

    def __call__(self, names: Sequence[str], inputs: int, *outputs: int, bias: bool = False) -> LinearLayer:
        return Linear(inputs, *outputs, bias=bias, dtype=self.dtype, device=self.device)

    def stack(self, names: Sequence[str], *shape: int) -> nn.Parameter | ExpertStack:
        return empty_parameter(*shape, dtype=self.dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class QuantizedLinears:
    """Quantized layers where the checkpoint's are, plain ones elsewhere."""

    checkpoint: OpenFormat
    dtype: torch.dtype
    device: torch.device

    def __call__(self, names: Sequence[str], inputs: int, *outputs: int, bias: bool = False) -> LinearLayer:
        """As `Linears`; a quantized layer has a bias if the checkpoint holds one.

        Raises:
            ModelError: projections that cannot share a layer, or be packed.
        """
        if not self.checkpoint.quantizes(names):
            return PlainLinears(self.dtype, self.device)(names, inputs, *outputs, bias=bias)
        return self.checkpoint.linear(names, inputs, outputs, dtype=self.dtype, device=self.device)

    def stack(self, names: Sequence[str], *shape: int) -> nn.Parameter | ExpertStack:
        """As `Linears`.

        Raises:
            ModelError: only some of them are quantized, they cannot be packed, or the format does not keep
                them.
        """
        experts, outputs, inputs = shape
        kept = self.checkpoint.stack(names, (experts, outputs, inputs), dtype=self.dtype, device=self.device)
        if kept is not None:
            return kept
        if self.checkpoint.quantizes(names):
            raise ModelError(f"{self.checkpoint.path}: quantized experts ({names[0]}) are not supported")
        return PlainLinears(self.dtype, self.device).stack(names, *shape)
