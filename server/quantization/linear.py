"""What linear layers of every weight format have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import nn

from server.layers.linear import LinearLayer
from server.quantization.experts import settle_stacks


class QuantizedLinear(LinearLayer):
    """A layer that multiplies with quantized weights.

    Its tensors are buffers with the names that the checkpoint has for them behind that of the projection:
    transformers fills those of a single projection by name, `weights` says where those of several go.

    Attributes:
        format_name: the format's, for the operator.
    """

    format_name: ClassVar[str]

    def objection_to_codes(self) -> str | None:
        return f"they do not multiply weights in format {self.format_name}"

    @classmethod
    def pack(cls, layers: Sequence[Self], dtype: torch.dtype, device: torch.device) -> dict[str, str]:
        """Bring the weights of all layers of a model, once loaded, into the form that is fastest.

        As it stands they stay as they were stored.

        Args:
            dtype: of the activations.
            device: where products are wanted; the weights may be elsewhere yet.

        Returns:
            Name and reason of what multiplies, for the operator.

        Raises:
            ModelError: tensors that contradict each other.
        """
        for layer in layers:
            layer.to(device)
        return {"name": f"{cls.format_name} ({len(layers)} layers)", "reason": "multiplied as stored"}


def pack_layers(model: nn.Module, dtype: torch.dtype, device: torch.device) -> dict[str, str] | None:
    """`QuantizedLinear.pack` for the quantized layers of `model`, and `ExpertStack.settle` for its experts;
    None: it has neither."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    packed = type(layers[0]).pack(layers, dtype, device) if layers else None
    settled = settle_stacks(model, device)
    if packed is None or settled is None:
        return packed or settled
    return {key: f"{packed[key]}; {settled[key]}" for key in packed}


def dequantized(stored: str, dtype: torch.dtype, why: str) -> dict[str, str]:
    """What the operator is told of weights that became floats.

    Args:
        stored: what they were, e.g. ``fp8``.
        why: they did not stay so.
    """
    return {
        "name": str(dtype).removeprefix("torch."),
        "reason": f"{stored} in the checkpoint, dequantized when loaded: {why}",
    }
