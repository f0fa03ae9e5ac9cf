"""What becomes of quantized matrices of experts on a device."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import nn

from server.layers.expert_stack import ExpertStack


def objection(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no kernel makes floats of such matrices in tiles, as it multiplies; None: one does."""
    if device.type != "cuda":
        return f"no kernel of this project multiplies with it on a device of type {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"kernels multiply with it in float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    return "Triton is not installed" if importlib.util.find_spec("triton") is None else None


def settle_stacks(model: nn.Module, device: torch.device) -> dict[str, str] | None:
    """Make the matrices of experts that are not floats ready for products on `device`.

    Returns:
        Name and reason of what multiplies, for the operator; None: there are none.

    Raises:
        ModelError: tensors that contradict each other.
    """
    stacks = [module for module in model.modules() if isinstance(module, ExpertStack)]
    for stack in stacks:
        stack.settle(device)
    return describe_stacks(stacks, device) if stacks else None


def describe_stacks(stacks: Sequence[ExpertStack], device: torch.device) -> dict[str, str]:
    """Name and reason, for the operator."""
    names = ", ".join(sorted({stack.format_name for stack in stacks}))
    way = "an own kernel makes floats of them in tiles, as it multiplies"
    if device.type != "cuda":
        way = "floats of an expert are made anew whenever rows pass it"
    return {"name": f"{names} (experts)", "reason": f"experts are kept as they are stored: {way}"}
