"""What a kernel is: a matrix in a layout of its own that multiplies rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from server.quantization.gptq.weight import QuantizedWeight


class GPTQKernel(nn.Module, ABC):
    """Holds one `QuantizedWeight`, in whatever form it multiplies fastest with.

    A subclass copies what it needs of the weight when it is made: the tensors given to it go away.
    It may use temporary memory for a part of the weight, never for all of it as floats.

    Args:
        weight: on the device where products are wanted.
        dtype: of the activations.
    """

    name: ClassVar[str]

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.inputs, self.outputs = weight.inputs, weight.outputs
        self.order: Tensor | None
        self.register_buffer("order", weight.order)

    @classmethod
    @abstractmethod
    def refuses(cls, bits: int, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot be used for a model on `device`, of the kind it is for; None: it can."""

    @classmethod
    @abstractmethod
    def refuses_weight(cls, weight: QuantizedWeight) -> str | None:
        """Why it cannot hold this weight; None: it can."""

    def forward(self, x: Tensor) -> Tensor:
        """[rows, inputs] → [rows, outputs], in the type of x."""
        return self.multiply(x if self.order is None else x[:, self.order])

    def add_to(self, x: Tensor, residual: Tensor) -> Tensor:
        """``residual + forward(x)``: [rows, outputs]; may reuse `residual`, which is contiguous."""
        y: Tensor = residual + self(x)
        return y

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """As `forward`, with the inputs of x in the order of the groups."""
