"""How checkpoints order the numbers of a tensor where the model has another order.

A model wants the rows of a projection head by head, queries before keys before values, and the pairs that
rotate in the two halves of a head. What a checkpoint orders otherwise is brought into that order once, when
it is read, so that no kernel knows of it: scores and sums do not depend on the order of what is summed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """The order of a stored tensor, by its first dimension (after the transposition, where it is transposed).

    Attributes:
        transposed: matrices are stored as [inputs, outputs].
        mixed_head: numbers of a head, where queries, keys and values of a head stand side by side (GPT-NeoX).
        paired_head: numbers of a head, where neighbours make the pairs that rotate (GPT-J, Cohere, GLM).
        rotated: how many of these rotate.
        mixed_gate: gates and ups of each expert take turns in the second dimension (gpt-oss).
        by_head: these numbers are the second dimension, rather than pieces of the first.
    """

    transposed: bool = False
    mixed_head: int = 0
    paired_head: int = 0
    rotated: int = 0
    by_head: bool = False
    mixed_gate: bool = False

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of a tensor that the model has in `shape`."""
        return (*shape[:-2], *shape[:-3:-1]) if self.transposed else shape

    def stored_axis(self, axis: int, dimensions: int) -> int:
        """Where dimension `axis` of the model's tensor, which has `dimensions`, is in what is stored."""
        if not self.transposed or dimensions < 2 or axis < dimensions - 2:
            return axis
        return 2 * dimensions - 3 - axis

    @property
    def mixes(self) -> bool:
        """Whether pieces that the model has one behind the other take turns in what is stored."""
        return bool(self.mixed_head or self.mixed_gate)

    def arrange(self, stored: Tensor) -> Tensor:
        """What is stored, or a part of it that keeps heads and pairs together, in the model's order."""
        if self.transposed:
            stored = stored.transpose(-1, -2) if stored.dim() > 1 else stored
        rest = stored.shape[1:]
        if self.mixed_head:
            return stored.view(-1, 3, self.mixed_head, *rest).transpose(0, 1).reshape(stored.shape)
        if self.mixed_gate:
            return torch.cat((stored[:, ::2], stored[:, 1::2]), 1)
        if self.paired_head:
            return self._apart(stored)
        return stored

    def _apart(self, stored: Tensor) -> Tensor:
        """Both of each pair in the halves of what rotates."""
        heads = stored if self.by_head else stored.reshape(-1, self.paired_head, *stored.shape[1:])
        pairs = heads[:, : self.rotated].view(len(heads), -1, 2, *heads.shape[2:]).transpose(1, 2)
        return torch.cat((pairs.flatten(1, 2), heads[:, self.rotated :]), 1).reshape(stored.shape)
