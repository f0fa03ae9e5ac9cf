"""The matrices of all experts of a layer as numbers of 8 bits, FP8 or integers, with scales."""

from __future__ import annotations

import torch
from torch import Tensor

from server.layers.expert_stack import ExpertStack
from server.layers.linear import Split, Target
from server.quantization.scales import multiply


class ScaledStack(ExpertStack):
    """Numbers of 8 bits, with a scale for each output, or for each block of outputs and inputs.

    Args:
        shape: experts, outputs of an expert's projections together, inputs.
        parts: projections that stand on top of each other.
        stored: type of the numbers.
        block: outputs and inputs that share a scale, which divides the sizes of every projection; None: each
            output has one.

    Attributes:
        weight: `stored` [experts, outputs, inputs].
        weight_scale: float32 [experts, outputs, 1], or [experts, outputs / block, inputs / block].
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        parts: int,
        *,
        stored: torch.dtype,
        block: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(shape, dtype)
        experts, outputs, inputs = shape
        self.parts, self.block = parts, block
        scales = (experts, outputs, 1) if block is None else (experts, outputs // block, inputs // block)
        self.register_buffer("weight", torch.zeros(shape, dtype=stored, device=device))
        self.register_buffer("weight_scale", torch.zeros(scales, device=device))

    @property
    def format_name(self) -> str:  # type: ignore[override]
        return "int8" if self.weight.dtype == torch.int8 else "fp8"

    def targets(self, split: Split, expert: int, part: int) -> dict[str, Target]:
        found: dict[str, Target] = {}
        for name in ("weight", "weight_scale"):
            tensor: Tensor = getattr(self, name)[expert]
            rows = len(tensor) // self.parts
            by_output = name == "weight_scale" and self.block is None
            axis = 0 if split == "outputs" else None if by_output else 1
            found[name] = Target(tensor.narrow(0, part * rows, rows), axis)
        return found

    def __getitem__(self, expert: int) -> Tensor:
        block = None if self.block is None else (self.block, self.block)
        return multiply(self.weight[expert], self.weight_scale[expert], block, self.dtype)
