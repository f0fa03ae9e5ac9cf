"""What the ranks of a split model tell each other during a forward pass."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Communication(Protocol):
    """The collective operations of a pass; a model in one piece has none (None).

    Attributes:
        rank: which one this is.
        size: how many ranks there are.
    """

    rank: int
    size: int

    def reduce(self, x: Tensor) -> Tensor:
        """The sum of `x` over all ranks, to the bit the same on each of them; may reuse `x`.

        Each rank calls it for the same products in the same order.
        """

    def share(self, size: int) -> Tensor | None:
        """uint8 [size], zeros: memory that all ranks have in common. None: those of GPUs have none.

        Each rank calls it at the same place. Once a rank is gone, the first byte is no zero any more.
        """

    def gather(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """``[rows, n]`` of each rank → ``[rows, columns]`` on all of them, side by side.

        As with `reduce`, each rank calls it at the same place.

        Args:
            out: takes the result, which is cut where it has fewer than ``ranks · n`` columns.
        """
