"""Which kind of linear layer stands where in a model: plain, or as its checkpoint was quantized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from server.layers.linear import Linear, LinearLayer
from server.quantization.formats.base import OpenFormat


class Linears(Protocol):
    """Makes the linear layers of a model."""

    def __call__(self, names: Sequence[str], inputs: int, *outputs: int, bias: bool = False) -> LinearLayer:
        """An empty layer for the checkpoint's projections `names`, which share their input.

        Args:
            outputs: features of each projection.
            bias: whether the architecture gives them one.
        """


@dataclass(frozen=True, slots=True)
class PlainLinears:
    """Layers of one type of float."""

    dtype: torch.dtype
    device: torch.device

    def __call__(self, names: Sequence[str], inputs: int, *outputs: int, bias: bool = False) -> LinearLayer:
        return Linear(inputs, *outputs, bias=bias, dtype=self.dtype, device=self.device)


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
