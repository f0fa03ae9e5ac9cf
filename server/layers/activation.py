"""Activations of feed-forward parts, in torch operations: what their names in `server.layers.spec` mean."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from server.layers.spec import Activation, FeedForwardSpec


def _relu2(x: Tensor) -> Tensor:
    return functional.relu(x).square()


def gate_product(gate: Tensor, up: Tensor, spec: FeedForwardSpec) -> Tensor:
    """What stands between the products of a part with a gate: of any shape."""
    if spec.clamp is None:
        return ACTIVATIONS[spec.activation](gate) * up
    limit = spec.clamp.limit
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(gate * spec.clamp.sharpness) * (up + 1)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "relu2": _relu2,
}
"""Name → function of any shape."""
