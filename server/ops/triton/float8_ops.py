"""Layer arithmetic with weights in FP8: norms quantize what they give, and one token's products have them
ride along."""

from __future__ import annotations

from torch import Tensor

from server.layers.linear import LinearLayer
from server.layers.norm import Norm
from server.layers.spec import FeedForwardSpec
from server.layers.weights import FeedForwardWeights
from server.ops.communication import Communication
from server.ops.triton.gates import SILU, gate_of
from server.ops.triton.layer_ops import TritonLayerOps
from server.quantization.fp8.linear import Float8Linear
from server.quantization.fp8.rows import quantize


class Float8LayerOps(TritonLayerOps):
    """As `TritonLayerOps`, which does whatever has nothing to do with FP8."""

    def norm_linear(
        self, x: Tensor, norm: Norm | None, linear: LinearLayer, out: Tensor | None = None
    ) -> Tensor:
        if not isinstance(linear, Float8Linear) or norm is None or not norm.rms or out is not None:
            return super().norm_linear(x, norm, linear, out)
        if len(x) == 1:
            return linear.single(x, norm=norm.weight, eps=norm.spec.eps)
        rows = quantize(x, linear.row_scales, norm=norm.weight, eps=norm.spec.eps)
        return linear.multiply(rows, x.dtype)

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
        """Rows are gated and quantized in one kernel."""
        down, changed = weights.down, post_norm is not None or scale != 1.0 or comm is not None
        if len(x) == 1 or gate_of(spec) != SILU or changed or not isinstance(down, Float8Linear):
            return super().feed_forward_add(x, norm, weights, spec, post_norm, scale, comm)
        y = self.norm_linear(x, norm, weights.gate_up)
        return down.multiply(quantize(y, down.row_scales, gated=True), x.dtype, x)

    def norm_feed_forward(
        self, x: Tensor, norm: Norm | None, gate_up: LinearLayer, spec: FeedForwardSpec
    ) -> Tensor:
        if (
            len(x) == 1
            and gate_of(spec) == SILU
            and isinstance(gate_up, Float8Linear)
            and norm is not None
            and norm.rms
        ):
            return gate_up.single(x, norm=norm.weight, eps=norm.spec.eps, gated=True)
        return super().norm_feed_forward(x, norm, gate_up, spec)
