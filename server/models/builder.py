"""What the parts of a decoder are made with: empty weights, and the order in which a checkpoint has them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from server.checkpoints.errors import ModelError
from server.layers.layout import Layout
from server.layers.linear import LinearLayer, WeightMap, empty_parameter
from server.layers.norm import Norm, build_norm
from server.layers.spec import AttentionSpec, NormSpec
from server.models.linears import Linears, PlainLinears


class Builder:
    """Makes the empty parts of a decoder in one type, on one device."""

    def __init__(self, dtype: torch.dtype, device: torch.device, linears: Linears | None) -> None:
        self.dtype, self.device = dtype, device
        self.linears = linears or PlainLinears(dtype, device)

    def norm(self, size: int, spec: NormSpec | None) -> Norm | None:
        return None if spec is None else build_norm(size, spec, dtype=self.dtype, device=self.device)

    def head_norm(self, heads: int, spec: AttentionSpec) -> Norm | None:
        """Of the queries or the keys of `heads` heads."""
        if spec.norm is None:
            return None
        shapes = {"head": (spec.head_dim,), "own": (heads, spec.head_dim), "joint": (heads * spec.head_dim,)}
        return build_norm(shapes[spec.norm_scope], spec.norm, dtype=self.dtype, device=self.device)

    def parameter(self, *shape: int) -> nn.Parameter:
        return empty_parameter(*shape, dtype=self.dtype, device=self.device)


def laid_out(
    linear: LinearLayer, targets: WeightMap, name: str, layout: Layout | None, transposed: bool
) -> WeightMap:
    """Those of `targets` that belong to the projection `name`, as the checkpoint orders them.

    Raises:
        ModelError: it orders quantized weights otherwise than the model.
    """
    own = {key: target for key, target in targets.items() if key.rpartition(".")[0] == name}
    if layout is None and not transposed:
        return own
    if not linear.dense:
        raise ModelError(f"quantized weights of {name} in an order of the checkpoint's own are not supported")
    layout = replace(layout or Layout(), transposed=transposed)
    return {key: replace(target, layout=layout) for key, target in own.items()}
