"""The seam between the models and the arithmetic of their layers.

A decoder layer is four products around attention, each with something small before or after it.
Stated together they can be fused: a norm into the product that reads it, an activation or the
residual into the one that writes it. The class below says what each means, in torch operations
that run everywhere; a device with something faster overrides it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from server.continuous_batching.layers.linear import Linear
from server.continuous_batching.layers.norm import RMSNorm
from server.gptq.linear import pack_weights

if TYPE_CHECKING:
    from server.continuous_batching.attention.base import AttentionBackend
    from server.continuous_batching.models.decoder import Decoder


class Kernels:
    """Layer arithmetic in torch operations: the reference, and the fallback of every device."""

    name = "torch"

    def prepare(self, model: Decoder, dtype: torch.dtype) -> dict[str, str] | None:
        """Bring the weights of `model` into the form that is fastest; called once, when loaded.

        Args:
            dtype: of the activations.

        Returns:
            What multiplies with quantised weights and why, for the operator; None: there are none.

        Raises:
            GPTQError: tensors that contradict each other.
        """
        return pack_weights(model, dtype)

    def run(
        self,
        model: Decoder,
        token_ids: Tensor,
        logit_rows: Tensor | None,
        attention: AttentionBackend[Any],
        out: Tensor | None = None,
    ) -> Tensor:
        """A whole forward pass; arguments and result are those of ``Decoder.forward``.

        Here it is made of the pieces below; a device that has all layers in one call overrides it.
        """
        logits: Tensor = model(token_ids, logit_rows, attention, self, out)
        return logits

    def norm_linear(self, x: Tensor, norm: RMSNorm, linear: Linear, out: Tensor | None = None) -> Tensor:
        """``linear(norm(x))``: [tokens, hidden] → [tokens, outputs], in `out` where it is given."""
        y: Tensor = linear(norm(x))
        return y if out is None else out.copy_(y)

    def norm_gated_linear(self, x: Tensor, norm: RMSNorm, gate_up: Linear) -> Tensor:
        """``silu(gate(norm(x))) · up(norm(x))``: [tokens, hidden] → [tokens, intermediate]."""
        gate, up = self.norm_linear(x, norm, gate_up).chunk(2, dim=-1)
        return functional.silu(gate) * up

    def linear_add(self, x: Tensor, linear: Linear, residual: Tensor) -> Tensor:
        """``residual + linear(x)``: [tokens, inputs] → [tokens, outputs]; may reuse `residual`."""
        y: Tensor = residual + linear(x)
        return y
