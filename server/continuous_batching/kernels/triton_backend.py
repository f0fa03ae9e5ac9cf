"""Layer arithmetic on NVIDIA GPUs: cuBLAS for the products, own kernels around and, for one token, in
place of them."""

from __future__ import annotations

import torch
from torch import Tensor

from server.continuous_batching.kernels.base import Kernels
from server.continuous_batching.kernels.triton_gemv import gemv, tiling
from server.continuous_batching.kernels.triton_norm import rms_norm, silu_mul
from server.continuous_batching.layers.linear import Linear
from server.continuous_batching.layers.norm import RMSNorm
from server.gptq.linear import GPTQLinear

_SPLIT_ROWS = 64
"""Up to so many, cuBLAS may split a product along its inputs; the kernel that adds the pieces lets its
successor start early, as products of own kernels do and cuBLAS's otherwise do not."""


class TritonKernels(Kernels):
    """Norms and activations in one pass each; a batch of one token never leaves Triton."""

    name = "triton"

    def norm_linear(self, x: Tensor, norm: RMSNorm, linear: Linear, out: Tensor | None = None) -> Tensor:
        if _single(x, linear):
            return gemv(x, linear.weight, norm=norm.weight, eps=norm.eps, out=out)
        # but for the head of a quantised model, `linear` is of the kind that stands in front of the norm
        early = not _by_cublas(linear) or len(x) <= _SPLIT_ROWS
        x = rms_norm(x, norm.weight, norm.eps, overlapped=early)
        if out is not None and _plain(linear):
            return torch.mm(x, linear.weight.t(), out=out)
        y: Tensor = linear(x)
        return y if out is None else out.copy_(y)

    def norm_gated_linear(self, x: Tensor, norm: RMSNorm, gate_up: Linear) -> Tensor:
        if _single(x, gate_up):
            return gemv(x, gate_up.weight, norm=norm.weight, eps=norm.eps, gated=True)
        return silu_mul(self.norm_linear(x, norm, gate_up), overlapped=not _by_cublas(gate_up))

    def linear_add(self, x: Tensor, linear: Linear, residual: Tensor) -> Tensor:
        if _single(x, linear):
            return gemv(x, linear.weight, residual=residual)
        if _plain(linear):
            return residual.addmm_(x, linear.weight.t())  # the sum is the product's own epilogue
        if isinstance(linear, GPTQLinear):
            return linear.add_to(x, residual)
        y: Tensor = residual + linear(x)
        return y


def _by_cublas(linear: Linear) -> bool:
    """Quantised layers bring their own product."""
    return type(linear) is Linear


def _plain(linear: Linear) -> bool:
    """A weight and nothing else."""
    return _by_cublas(linear) and linear.bias is None


def _single(x: Tensor, linear: Linear) -> bool:
    """Whether the product is one token's with a weight that the kernel takes."""
    return x.shape[0] == 1 and _plain(linear) and tiling(1, linear.weight.shape[1], gated=False) is not None
