"""The seam between the models and the arithmetic of their layers.

A decoder layer is four products around attention, each with something small before or after it.
Stated together they can be fused: a norm into the product that reads it, an activation or the
residual into the one that writes it. The class below says what each means, in torch operations
that run everywhere; a device with something faster overrides it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from server.layers.activation import ACTIVATIONS, gate_product
from server.layers.linear import LinearLayer
from server.layers.norm import Norm
from server.layers.spec import ExpertsSpec, FeedForwardSpec
from server.layers.weights import DecoderWeights, ExpertsWeights, FeedForwardWeights
from server.ops.communication import Communication
from server.quantization.linear import pack_layers


class LayerOps:
    """Layer arithmetic in torch operations: the reference, and the fallback of every device."""

    name = "torch"

    def prepare(self, model: DecoderWeights, dtype: torch.dtype) -> dict[str, str] | None:
        """Bring the weights of `model` into the form that is fastest; called once, when loaded.

        Args:
            dtype: of the activations.

        Returns:
            What multiplies with quantized weights and why, for the operator; None: there are none.

        Raises:
            ModelError: tensors that contradict each other.
        """
        return pack_layers(model, dtype, model.embedding.device)

    def linear(self, x: Tensor, linear: LinearLayer) -> Tensor:
        """[tokens, inputs] → [tokens, outputs], by the layer itself. An override fuses `dense` layers alone:
        others change their products (adapters), or multiply with codes."""
        y: Tensor = linear(x)
        return y

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        """``norm(x)``, of the last dimension, where no product follows that it could be part of."""
        y: Tensor = norm(x)
        return y

    def norm_linear(
        self, x: Tensor, norm: Norm | None, linear: LinearLayer, out: Tensor | None = None
    ) -> Tensor:
        """``linear(norm(x))``: [tokens, hidden] → [tokens, outputs], in `out` where it is given."""
        y = self.linear(x if norm is None else self.norm(x, norm), linear)
        return y if out is None else out.copy_(y)

    def norm_feed_forward(
        self, x: Tensor, norm: Norm | None, gate_up: LinearLayer, spec: FeedForwardSpec
    ) -> Tensor:
        """``activation(gate(norm(x))) · up(norm(x))``, or without a gate ``activation(up(norm(x)))``.

        [tokens, hidden] → [tokens, inner].
        """
        return between(self.norm_linear(x, norm, gate_up), spec)

    def feed_forward_add(
        self,
        x: Tensor,
        norm: Norm | None,
        weights: FeedForwardWeights,
        spec: FeedForwardSpec,
        post_norm: Norm | None = None,
        scale: float = 1.0,
        comm: Communication | None = None,
    ) -> Tensor:
        """``x + scale · post_norm(down(inner))``, with what `norm_feed_forward` makes of x; may reuse x."""
        inner = self.norm_feed_forward(x, norm, weights.gate_up, spec)
        return self.linear_add(inner, weights.down, x, post_norm, scale, comm)

    def linear_add(
        self,
        x: Tensor,
        linear: LinearLayer,
        residual: Tensor,
        norm: Norm | None = None,
        scale: float = 1.0,
        comm: Communication | None = None,
    ) -> Tensor:
        """``residual + scale · norm(linear(x))``: [tokens, inputs] → [tokens, outputs]; may reuse `residual`.

        Args:
            norm: of the product, before it is added; None: there is none.
            comm: adds up the products of all ranks first, where `linear` is split along its inputs.
        """
        return self.add(self.linear(x, linear), residual, norm, scale, comm)

    def add(
        self,
        y: Tensor,
        residual: Tensor,
        norm: Norm | None = None,
        scale: float = 1.0,
        comm: Communication | None = None,
    ) -> Tensor:
        """``residual + scale · norm(y)``: [tokens, hidden]; arguments as of `linear_add`."""
        if comm is not None:
            y = comm.reduce(y)
        if norm is not None:
            y = self.norm(y, norm)
        if scale != 1.0:
            y = y * scale
        return residual + y

    def experts(self, x: Tensor, norm: Norm | None, weights: ExpertsWeights, spec: FeedForwardSpec) -> Tensor:
        """What the experts make of ``norm(x)``, and the shared one: [tokens, hidden] → [tokens, hidden]."""
        assert spec.experts is not None
        x = x if norm is None else self.norm(x, norm)
        chosen, shares = self.route(self.linear(x, weights.router), spec.experts)
        y = self.chosen_experts(x, chosen, shares, weights, spec)
        if weights.shared is None:
            return y
        inner = self.norm_feed_forward(x, None, weights.shared.gate_up, spec)
        shared = self.linear(inner, weights.shared.down)
        if weights.shared_gate is not None:
            shared = torch.sigmoid(self.linear(x, weights.shared_gate)) * shared
        return y + shared

    def route(self, scores: Tensor, spec: ExpertsSpec) -> tuple[Tensor, Tensor]:
        """(experts, float32 shares), both [tokens, used], from the scores [tokens, experts] of the router."""
        shares, chosen = scores.float().softmax(-1).topk(spec.used, -1)
        return chosen, shares / shares.sum(-1, keepdim=True) if spec.normalized else shares

    def chosen_experts(
        self, x: Tensor, chosen: Tensor, shares: Tensor, weights: ExpertsWeights, spec: FeedForwardSpec
    ) -> Tensor:
        """The sum of each token's experts, each times its share.

        Expert by expert, on the rows that it is to see; the host looks how many those are.

        Args:
            x: [tokens, hidden], normalised.
            chosen: integers [tokens, used].
            shares: float32 [tokens, used].

        Returns:
            [tokens, hidden].
        """
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=len(weights.down)).tolist()
        y, shares = torch.zeros_like(x), shares.flatten()
        for expert, places in enumerate(torch.split(order, counts)):
            if not len(places):
                continue
            rows = places // chosen.shape[1]
            up_bias = None if weights.gate_up_bias is None else weights.gate_up_bias[expert]
            down_bias = None if weights.down_bias is None else weights.down_bias[expert]
            inner = between(functional.linear(x[rows], weights.gate_up[expert], up_bias), spec)
            part = functional.linear(inner, weights.down[expert], down_bias) * shares[places, None]
            y.index_add_(0, rows, part.to(y.dtype))
        return y


def between(y: Tensor, spec: FeedForwardSpec) -> Tensor:
    """What stands between the products of a feed-forward part: [rows, gates and ups] → [rows, inner]."""
    if not spec.gated:
        return ACTIVATIONS[spec.activation](y)
    gate, up = y.chunk(2, dim=-1)
    return gate_product(gate, up, spec)


class ForeignOps(LayerOps):
    """Stands for layers that others' modules compute."""

    def __init__(self, name: str) -> None:
        self.name = name
