"""Everything of a model in one order of sums: for `deterministic` on GPUs.

Products and norms of a row are the same in any step. Attention of decodes and of prompts differs, so what was
decoded is decoded again (`AttentionBackend.chunks_like_decodes`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from server.layers.linear import LinearLayer
from server.layers.norm import Norm
from server.layers.spec import FeedForwardSpec
from server.layers.weights import DecoderWeights
from server.ops.backend import AttentionChoice, LayeredBackend
from server.ops.communication import Communication
from server.ops.layer_ops import LayerOps, between
from server.ops.triton.fixed_product import product, rows_of_cuts
from server.ops.triton.gates import SILU, gate_of
from server.ops.triton.norm import rms_norm

_WARPS = 4
"""Of programs that normalise: the order of the sum depends on it."""


def objection(model: DecoderWeights, dtype: torch.dtype, compute_capability: tuple[int, int]) -> str | None:
    """Why the sums of a model cannot have one order; None: they can."""
    spec = model.spec
    if compute_capability[0] != 9:
        major, minor = compute_capability
        return f"its products are for Hopper (compute capability 9.0), the GPU has {major}.{minor}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"its products are of float16 and bfloat16, not of {str(dtype).removeprefix('torch.')}"
    if model.computed_by is not None:
        return f"modules of {model.computed_by} compute the model, whose sums follow the number of rows"
    for index, layer in enumerate(spec.layers):
        if layer.feed_forward.experts is not None:
            return f"products of experts follow how many rows each of them gets (layer {index})"
        if layer.attention.norm is not None and layer.attention.norm_scope == "own":
            return f"heads have norms with weights of their own (layer {index})"
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    if any(not norm.rms for norm in norms):
        return "layer normalisation has no kernel of one order"
    for name, linear in model.named_modules():
        if isinstance(linear, LinearLayer) and (reason := _objection_to_linear(linear)) is not None:
            return f"{reason} ({name})"
    return None


def _objection_to_linear(linear: LinearLayer) -> str | None:
    if not linear.dense:
        format_name = getattr(linear, "format_name", type(linear).__name__)
        return f"products of weights in format {format_name} follow the number of rows"
    if linear.weight.shape[1] % 8:
        return f"{linear.weight.shape[1]} inputs are no multiple of 8"
    return None


class FixedOrderOps(LayerOps):
    """Layer arithmetic in which a row's bits do not depend on the rows beside it."""

    name = "triton, sums of one order"

    def prepare(self, model: DecoderWeights, dtype: torch.dtype) -> dict[str, str] | None:
        found = super().prepare(model, dtype)
        if model.embedding.is_cuda:
            _compile(model, dtype)
        return found

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return rms_norm(rows, norm.weight, norm.spec.eps, warps=_WARPS).view(x.shape)

    def linear(self, x: Tensor, linear: LinearLayer) -> Tensor:
        return self.norm_linear(x, None, linear)

    def norm_linear(
        self, x: Tensor, norm: Norm | None, linear: LinearLayer, out: Tensor | None = None
    ) -> Tensor:
        if out is None:
            out = torch.empty((len(x), len(linear.weight)), dtype=x.dtype, device=x.device)
        self._product(x, norm, linear, out)
        return out

    def norm_feed_forward(
        self, x: Tensor, norm: Norm | None, gate_up: LinearLayer, spec: FeedForwardSpec
    ) -> Tensor:
        if gate_of(spec) != SILU:
            return between(self.norm_linear(x, norm, gate_up), spec)
        inner = torch.empty((len(x), len(gate_up.weight) // 2), dtype=x.dtype, device=x.device)
        self._product(x, norm, gate_up, inner, gated=True)
        return inner

    def linear_add(
        self,
        x: Tensor,
        linear: LinearLayer,
        residual: Tensor,
        norm: Norm | None = None,
        scale: float = 1.0,
        comm: Communication | None = None,
    ) -> Tensor:
        if norm is not None or scale != 1.0 or comm is not None:
            return super().linear_add(x, linear, residual, norm, scale, comm)
        product(x, linear.weight, residual, bias=linear.bias, residual=True)
        return residual

    def _product(
        self, x: Tensor, norm: Norm | None, linear: LinearLayer, out: Tensor, *, gated: bool = False
    ) -> None:
        rows = x if norm is None else self.norm(x, norm)
        product(rows, linear.weight, out, bias=linear.bias, gated=gated)


def _compile(model: DecoderWeights, dtype: torch.dtype) -> None:
    """Multiply with weights of every shape in all tiles that there are: no request waits for a compiler."""
    seen, gates = set(), gate_of(model.spec.layers[0].feed_forward) == SILU
    for name, linear in model.named_modules():
        if not isinstance(linear, LinearLayer):
            continue
        outputs, inputs = linear.weight.shape
        adds, gated = name.endswith((".output", ".down")), gates and name.endswith(".gate_up")
        if (kind := (outputs, inputs, linear.bias is not None, adds, gated)) in seen:
            continue
        seen.add(kind)
        wide = outputs // 2 if gated else outputs
        for rows in rows_of_cuts(wide, gated):
            x = torch.zeros((rows, inputs), dtype=dtype, device=linear.weight.device)
            y = torch.zeros((rows, wide), dtype=dtype, device=x.device)
            product(x, linear.weight, y, bias=linear.bias, gated=gated, residual=adds)


class FixedOrderBackend(LayeredBackend):
    """Layers by `FixedOrderOps`, beside attention that keeps the same promise."""

    same_bits = True

    def __init__(self, attention: AttentionChoice) -> None:
        super().__init__(attention, FixedOrderOps(), "deterministic: every sum has one order")
