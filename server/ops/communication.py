"""What the ranks of a split model tell each other during a forward pass."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Communication(Protocol):
    """The collective operations of a pass; a model in one piece has none (None)."""

    def reduce(self, x: Tensor) -> Tensor:
        """The sum of `x` over all ranks, on each of them; may reuse `x`.

        Each rank calls it for the same products in the same order.
        """
