"""The matrices of all experts of a layer, where they are not floats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from server.layers.codes import CodesForm, CodesMatrix
from server.layers.linear import Split, Target


class ExpertStack(nn.Module, ABC):
    """One matrix [outputs, inputs] for each expert, as a weight format stores it.

    Backends multiply with a form that they know, and with any other by the floats of `self[expert]`.

    Attributes:
        format_name: the format's, for the operator.
        shape: experts, outputs, inputs.
        dtype: of activations, and of what `self[expert]` gives.
    """

    format_name: ClassVar[str]

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, expert: int) -> Tensor:
        """The matrix of an expert, in floats: [outputs, inputs]."""

    def targets(self, split: Split, expert: int, part: int) -> dict[str, Target]:
        """Where the tensors of an expert's projection go, by the last part of their names in a checkpoint.

        Args:
            split: what ranks divide among them of it.
            part: which of the projections that stand on top of each other, gate before up.
        """
        raise NotImplementedError(f"{type(self).__name__} is not filled expert by expert")

    def objection_to_codes(self) -> str | None:
        """Why `small_codes` cannot give the matrices; None: it can."""
        return f"it does not compute experts in format {self.format_name}"

    def codes_form(self) -> CodesForm:
        """Of what `small_codes` will give of every expert; known once it is settled."""
        raise NotImplementedError

    def small_codes(self, expert: int) -> CodesMatrix:
        """The matrix of an expert for kernels that multiply with codes."""
        raise NotImplementedError

    def release(self) -> None:
        """Let the loaded matrices go, once something else holds them."""
        raise NotImplementedError

    def settle(self, device: torch.device) -> None:
        """Take what the loaded tensors say; called once, before the first product on `device`.

        Raises:
            ModelError: tensors that contradict each other.
        """
