"""Normalisations of the last dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.layers.linear import Target, WeightMap, empty_parameter
from server.layers.spec import NormSpec

Shape = int | tuple[int, ...]
"""Of a weight; before the dimension that is normalised may stand others, which have weights of their own."""


def _sizes(shape: Shape) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else shape


class Norm(nn.Module):
    """A normalisation as its `spec` says, in the type of what it is given.

    Attributes:
        rms: whether it is ``x / rms(x) · weight`` and nothing more, for kernels that can do that.
    """

    spec: NormSpec
    rms = False
    weight: nn.Parameter

    def weights(self, name: str) -> WeightMap:
        """Where the checkpoint's tensors of the norm `name` go."""
        return {f"{name}.weight": Target(self.weight.data, offset=1.0 if self.spec.minus_one else 0.0)}


class RMSNorm(Norm):
    """Root mean square layer normalisation (Zhang and Sennrich, 2019): ``x / rms(x) · weight``.

    The mean is taken in float32. A weight that is stored less 1 is kept in float32, for the sum would be
    rounded; the product with it is rounded once.
    """

    rms = True

    def __init__(self, shape: Shape, spec: NormSpec, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        self.eps = spec.eps
        stored = torch.float32 if spec.minus_one else dtype
        self.weight = empty_parameter(*_sizes(shape), dtype=stored, device=device)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.scaled(wide, wide.pow(2).mean(-1, keepdim=True), x.dtype)

    def scaled(self, wide: Tensor, squares: Tensor, dtype: torch.dtype) -> Tensor:
        """What float32 `wide` is, normalised by the mean of its squares [..., 1], in type `dtype`."""
        wide = wide * torch.rsqrt(squares + self.eps)
        if self.weight.dtype != dtype:
            return (self.weight * wide).to(dtype)
        return self.weight * wide.to(dtype)


class LayerNorm(Norm):
    """Layer normalisation (Ba et al., 2016): ``(x - mean(x)) / std(x) · weight + bias``."""

    def __init__(self, shape: Shape, spec: NormSpec, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        self.eps = spec.eps
        self.weight = empty_parameter(*_sizes(shape), dtype=dtype, device=device)
        self.bias = empty_parameter(*_sizes(shape), dtype=dtype, device=device) if spec.bias else None

    def weights(self, name: str) -> WeightMap:
        found = super().weights(name)
        if self.bias is not None:
            found[f"{name}.bias"] = Target(self.bias.data)
        return found

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 1:
            return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        wide = functional.layer_norm(x.float(), x.shape[-1:], eps=self.eps) * self.weight.float()
        return (wide if self.bias is None else wide + self.bias.float()).to(x.dtype)


def build_norm(shape: Shape, spec: NormSpec, *, dtype: torch.dtype, device: torch.device) -> Norm:
    """An empty norm of the last dimension, with a weight of that shape."""
    kind = RMSNorm if spec.kind == "rms" else LayerNorm
    return kind(shape, spec, dtype=dtype, device=device)
