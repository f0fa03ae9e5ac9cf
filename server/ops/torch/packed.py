"""Linear layers packed by oneDNN, for CPUs where the C++ kernels cannot be built.

oneDNN packs weights anew at every product unless it is given packed ones; with few tokens a step
that is as much work as the product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from server.layers.linear import LinearLayer
from server.layers.weights import DecoderWeights
from server.ops.layer_ops import LayerOps
from server.quantization.gptq.memory import return_freed_pages

_ROWS_HINT = 16
"""Tokens a step that the packing is made for."""


def objection(dtype: torch.dtype) -> str | None:
    """Why oneDNN cannot pack weights of that type here, or None."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch was built without oneDNN"
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN does not compute in bfloat16 on this processor"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"weights of {dtype} are not packed"
    return None


class PackedLinear(nn.Module):
    """A linear layer whose weight only oneDNN can read.

    Args:
        linear: the layer that it stands for; keeps no weight afterwards.
    """

    def __init__(self, linear: LinearLayer) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.bias = linear.bias
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, inputs] → [tokens, outputs]."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y


class PackedLayerOps(LayerOps):
    """torch operations on packed weights."""

    name = "torch (packed by oneDNN)"

    def prepare(self, model: DecoderWeights, dtype: torch.dtype) -> dict[str, str] | None:
        quantized = super().prepare(model, dtype)
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, LinearLayer) and child.dense:
                    setattr(module, name, PackedLinear(child))
        return_freed_pages()  # of the weights as they were
        return quantized
