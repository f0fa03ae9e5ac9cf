"""Which kind of linear layer stands where in a model: plain, or as its checkpoint was quantised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch

from server.continuous_batching.layers.linear import Linear
from server.gptq.checkpoint import GPTQCheckpoint
from server.gptq.linear import GPTQLinear


class Linears(Protocol):
    """Makes the linear layers of a model."""

    def __call__(self, names: Sequence[str], inputs: int, *outputs: int, bias: bool = False) -> Linear:
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

    def __call__(self, names: Sequence[str], inputs: int, *outputs: int, bias: bool = False) -> Linear:
        return Linear(inputs, *outputs, bias=bias, dtype=self.dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class GPTQLinears:
    """Quantised layers where the checkpoint's are, plain ones elsewhere."""

    checkpoint: GPTQCheckpoint
    dtype: torch.dtype
    device: torch.device

    def __call__(self, names: Sequence[str], inputs: int, *outputs: int, bias: bool = False) -> Linear:
        """As `Linears`; a quantised layer has a bias if the checkpoint holds one.

        Raises:
            GPTQError: projections that cannot share a layer, or be packed.
        """
        if not self.checkpoint.quantised(names):
            return PlainLinears(self.dtype, self.device)(names, inputs, *outputs, bias=bias)
        layer = GPTQLinear(self.checkpoint, names, inputs, outputs, dtype=self.dtype, device=self.device)
        return cast(Linear, layer)  # what a model does with a layer, both can
