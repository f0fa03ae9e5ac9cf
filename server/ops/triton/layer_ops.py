"""Layer arithmetic on NVIDIA GPUs: cuBLAS for the products, own kernels around and, for up to 128 tokens and
gated products of prompts, in place of them."""

from __future__ import annotations

import torch
from torch import Tensor

from server.layers.linear import LinearLayer
from server.layers.norm import Norm
from server.layers.spec import ExpertsSpec, FeedForwardSpec
from server.layers.weights import DecoderWeights, ExpertsWeights
from server.ops.communication import Communication
from server.ops.layer_ops import LayerOps, between
from server.ops.triton.experts import inward, outward, tiling_of
from server.ops.triton.few_experts import ROWS as FEW_ROWS
from server.ops.triton.few_experts import few_inward, few_outward
from server.ops.triton.few_rows import few_rows
from server.ops.triton.few_rows import takes as few_rows_takes
from server.ops.triton.gated_product import can_take, gated_product
from server.ops.triton.gated_product import takes as gated_product_takes
from server.ops.triton.gates import SILU, gate_mul, gate_of
from server.ops.triton.norm import head_norm, rms_norm
from server.ops.triton.routing import assign, route
from server.quantization.gemv import gemv, tiling

_SPLIT_ROWS = 64
"""Up to this number of rows, cuBLAS may split a product along its inputs; the kernel that adds the pieces
lets its successor start early, as products of own kernels do and cuBLAS's otherwise do not."""


class TritonLayerOps(LayerOps):
    """Norms and activations in one pass each; a batch of a few tokens never leaves Triton.

    What has no kernel here (other norms than RMS, other activations than SiLU) is done by torch.
    """

    name = "triton"

    def prepare(self, model: DecoderWeights, dtype: torch.dtype) -> dict[str, str] | None:
        found = super().prepare(model, dtype)
        if any(gate_of(layer.feed_forward) == SILU for layer in model.spec.layers):
            _compile_gated_products(model, dtype)
        return found

    def linear(self, x: Tensor, linear: LinearLayer) -> Tensor:
        if _single(x, linear):
            return gemv(x, linear.weight, bias=linear.bias)
        if _few(x, linear):
            return few_rows(x, linear.weight, bias=linear.bias)
        return super().linear(x, linear)

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        if not norm.rms:
            return super().norm(x, norm)
        return (rms_norm if x.dim() == 2 else head_norm)(x, norm.weight, norm.spec.eps)

    def norm_linear(
        self, x: Tensor, norm: Norm | None, linear: LinearLayer, out: Tensor | None = None
    ) -> Tensor:
        if norm is None or not norm.rms:
            return super().norm_linear(x, norm, linear, out)
        if _single(x, linear):
            return gemv(x, linear.weight, bias=linear.bias, norm=norm.weight, eps=norm.spec.eps, out=out)
        # but for the head of a quantized model, `linear` is of the kind that stands in front of the norm
        early = not linear.dense or len(x) <= _SPLIT_ROWS
        x = rms_norm(x, norm.weight, norm.spec.eps, overlapped=early)
        if out is not None and _plain(linear):
            return torch.mm(x, linear.weight.t(), out=out)
        y = self.linear(x, linear)
        return y if out is None else out.copy_(y)

    def norm_feed_forward(
        self, x: Tensor, norm: Norm | None, gate_up: LinearLayer, spec: FeedForwardSpec
    ) -> Tensor:
        gate = gate_of(spec)
        if gate is None or norm is None or not norm.rms:
            return super().norm_feed_forward(x, norm, gate_up, spec)
        if gate == SILU and _single(x, gate_up):
            return gemv(x, gate_up.weight, bias=gate_up.bias, norm=norm.weight, eps=norm.spec.eps, gated=True)
        if gate == SILU and _few(x, gate_up, gated=True):
            x = rms_norm(x, norm.weight, norm.spec.eps)
            return few_rows(x, gate_up.weight, bias=gate_up.bias, gated=True)
        if gate == SILU and _plain(gate_up) and gated_product_takes(x, gate_up.weight):
            return gated_product(rms_norm(x, norm.weight, norm.spec.eps), gate_up.weight)
        return gate_mul(self.norm_linear(x, norm, gate_up), gate, overlapped=not gate_up.dense)

    def linear_add(
        self,
        x: Tensor,
        linear: LinearLayer,
        residual: Tensor,
        norm: Norm | None = None,
        scale: float = 1.0,
        comm: Communication | None = None,
    ) -> Tensor:
        if norm is not None or scale != 1.0:
            return super().linear_add(x, linear, residual, norm, scale, comm)
        if comm is not None and comm.rank > 0:
            return comm.reduce(self.linear(x, linear))
        if comm is not None:  # the residual is added once, on the first rank, within its product
            return comm.reduce(self.linear_add(x, linear, residual))
        if _single(x, linear):
            return gemv(x, linear.weight, bias=linear.bias, residual=residual)
        if _few(x, linear):
            return few_rows(x, linear.weight, bias=linear.bias, residual=residual)
        if _plain(linear):
            return residual.addmm_(x, linear.weight.t())  # the sum is the product's own epilogue
        return linear.add_to(x, residual)

    def route(self, scores: Tensor, spec: ExpertsSpec) -> tuple[Tensor, Tensor]:
        return route(scores, spec)

    def chosen_experts(
        self, x: Tensor, chosen: Tensor, shares: Tensor, weights: ExpertsWeights, spec: FeedForwardSpec
    ) -> Tensor:
        gate, count = gate_of(spec), len(weights.down)
        if len(x) <= FEW_ROWS:
            inner = few_inward(x, weights.gate_up, weights.gate_up_bias, chosen, gate)
            inner = between(inner, spec) if gate is None else inner
            return few_outward(inner, weights.down, weights.down_bias, chosen, shares)
        by = tiling_of(chosen.numel() / count, weights.down)
        to = assign(chosen, count, by.rows)
        y = inward(x, weights.gate_up, weights.gate_up_bias, to, by)
        inner = between(y, spec) if gate is None else gate_mul(y, gate)
        return outward(inner, weights.down, weights.down_bias, to, by, shares)


def _plain(linear: LinearLayer) -> bool:
    """A weight and nothing else."""
    return linear.dense and linear.bias is None


def _single(x: Tensor, linear: LinearLayer) -> bool:
    """Whether the product is one token's with a weight that the kernel takes."""
    return x.shape[0] == 1 and linear.dense and tiling(1, linear.weight.shape[1], gated=False) is not None


def _few(x: Tensor, linear: LinearLayer, *, gated: bool = False) -> bool:
    """Whether the product is one of few rows with a weight that the kernel takes."""
    return linear.dense and few_rows_takes(x, linear.weight, gated=gated)


def _compile_gated_products(model: DecoderWeights, dtype: torch.dtype) -> None:
    """No request waits for a compiler: which prompts need the kernel follows their number of tokens."""
    weights = {
        linear.weight.shape: linear.weight
        for name, linear in model.named_modules()
        if name.endswith(".gate_up") and isinstance(linear, LinearLayer) and _plain(linear)
    }
    for weight in weights.values():
        x = torch.zeros((1, weight.shape[1]), dtype=dtype, device=weight.device)
        if can_take(x, weight):
            gated_product(x, weight)
