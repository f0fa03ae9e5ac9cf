"""How ranks divide the tensors of a quantized matrix among them."""

from __future__ import annotations

from dataclasses import replace

from server.layers.linear import Target
from server.quantization.gptq.config import GPTQConfig

AXES: dict[str, tuple[int | None, int | None]] = {
    "qweight": (1, 0),
    "qzeros": (1, 0),
    "scales": (1, 0),
    "g_idx": (None, 0),
    "bias": (0, None),
}
"""Dimensions of outputs and of inputs; None: it has no such."""


def split_by_inputs(target: Target, kind: str, config: GPTQConfig, inputs: int) -> Target:
    """`target`, for ranks that have `inputs` inputs each: groups are split as their inputs are, and each rank
    counts its own."""
    if config.group_size == -1 and kind in ("scales", "qzeros"):
        return replace(target, axis=None)  # the one group is there on every rank
    if config.group_size != -1 and kind == "g_idx":
        return replace(target, origin=config.groups(inputs))
    return target
