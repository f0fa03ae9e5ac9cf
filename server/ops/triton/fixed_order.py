"""Everything of a model in one order of sums: for `deterministic` on GPUs.

What was decoded has the bits of decodes, what was prompt those of prompts, whatever is computed beside them.
So each product of a step with prompts is two: decodes by `decode_product`, the others by `prompt_product`.
The head makes the scores of both as for decodes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from server.layers.linear import LinearLayer
from server.layers.norm import Norm
from server.layers.spec import FeedForwardSpec
from server.layers.weights import DecoderWeights
from server.ops.attention import AttentionBackend
from server.ops.backend import AttentionChoice, LayeredBackend
from server.ops.communication import Communication
from server.ops.layer_ops import LayerOps, between
from server.ops.paged_attention import PagedAttention
from server.ops.triton.fixed_product import COUNTERS, decode_product, normalises, prompt_product
from server.ops.triton.norm import rms_norm, silu_mul

_WARPS = 4
"""Of programs that normalise, on their own as within a product: the order of the sum depends on it."""


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
    """Layer arithmetic in which a row's bits do not depend on the rows beside it.

    Attributes:
        decodes: rows of the step at hand that are decodes; they come first.
    """

    name = "triton, sums of one order"

    def __init__(self) -> None:
        self.decodes = 0
        self._head: LinearLayer | None = None
        self._arrivals = torch.empty(0, dtype=torch.int32)

    def prepare(self, model: DecoderWeights, dtype: torch.dtype) -> dict[str, str] | None:
        self._head = model.head
        self._arrivals = torch.zeros(COUNTERS, dtype=torch.int32, device=model.embedding.device)
        return super().prepare(model, dtype)

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return rms_norm(rows, norm.weight, norm.spec.eps, warps=_WARPS).view(x.shape)

    def linear(self, x: Tensor, linear: LinearLayer) -> Tensor:
        return self._product(x, linear)

    def norm_linear(
        self, x: Tensor, norm: Norm | None, linear: LinearLayer, out: Tensor | None = None
    ) -> Tensor:
        if norm is not None and self._all_decodes(x, linear) and normalises(*x.shape):
            return self._product(x, linear, out, norm)
        return self._product(x if norm is None else self.norm(x, norm), linear, out)

    def norm_feed_forward(
        self, x: Tensor, norm: Norm | None, gate_up: LinearLayer, spec: FeedForwardSpec
    ) -> Tensor:
        if not (spec.gated and spec.activation == "silu" and spec.clamp is None):
            return between(self.norm_linear(x, norm, gate_up), spec)
        weight, bias = gate_up.weight, gate_up.bias
        inner = torch.empty((len(x), len(weight) // 2), dtype=x.dtype, device=x.device)
        options: dict[str, Any] = {"bias": bias, "gated": True}
        if norm is not None and self._all_decodes(x, gate_up) and normalises(*x.shape):
            options |= {"norm": norm.weight, "eps": norm.spec.eps}
        elif norm is not None:
            x = self.norm(x, norm)
        count = min(self.decodes, len(x))
        if count:
            decode_product(x[:count], weight, inner[:count], self._arrivals, **options)
        if count < len(x):
            both = torch.empty((len(x) - count, len(weight)), dtype=x.dtype, device=x.device)
            prompt_product(x[count:], weight, both, bias=bias)
            silu_mul(both, out=inner[count:])
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
        return self._product(x, linear, residual, residual=True)

    def _all_decodes(self, x: Tensor, linear: LinearLayer) -> bool:
        return linear is self._head or len(x) <= self.decodes

    def _product(
        self,
        x: Tensor,
        linear: LinearLayer,
        out: Tensor | None = None,
        norm: Norm | None = None,
        *,
        residual: bool = False,
    ) -> Tensor:
        """``linear(norm(x))`` in `out`, or added to it; a norm only where all rows are decodes."""
        weight, bias = linear.weight, linear.bias
        if out is None:
            out = torch.empty((len(x), len(weight)), dtype=x.dtype, device=x.device)
        options: dict[str, Any] = {"bias": bias, "residual": residual}
        count = len(x) if self._all_decodes(x, linear) else self.decodes
        if count:
            if norm is not None:
                options |= {"norm": norm.weight, "eps": norm.spec.eps}
            decode_product(x[:count], weight, out[:count], self._arrivals, **options)
        if count < len(x):
            prompt_product(x[count:], weight, out[count:], **options)
        return out


class FixedOrderBackend(LayeredBackend):
    """Tells the operations which rows are decodes."""

    same_bits = True
    layer_ops: FixedOrderOps

    def __init__(self, attention: AttentionChoice) -> None:
        super().__init__(attention, FixedOrderOps(), "deterministic: every sum has one order")

    def forward(
        self,
        model: DecoderWeights,
        token_ids: Tensor,
        logit_rows: Tensor | None,
        attention: AttentionBackend[Any],
        out: Tensor | None = None,
    ) -> Tensor:
        paged = attention.groups[0]
        assert isinstance(paged, PagedAttention)
        self.layer_ops.decodes = paged.batch.num_decodes
        return super().forward(model, token_ids, logit_rows, attention, out)
