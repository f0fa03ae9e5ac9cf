"""How a checkpoint's activations are quantized, and which devices multiply FP8."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

BLOCK = 128
"""Outputs, and inputs, that share a scale where scales are of blocks: the only size that is multiplied."""
MULTIPLE = 16
"""That the sizes of a matrix must be a multiple of, for its rows to begin where FP8 units read."""
FIRST_UNITS = (8, 9)
"""Compute capability of the first GPUs that multiply FP8."""


@dataclass(frozen=True, slots=True)
class Activations:
    """How rows are quantized before they are multiplied.

    Attributes:
        static: by the scale that the checkpoint holds for each layer, rather than by their greatest number.
        ceiling: numbers above it, in magnitude, become it; None: there is none.
    """

    static: bool = False
    ceiling: float | None = None


def objection(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why FP8 is not multiplied on `device` with activations that come in `dtype`; None: it is."""
    if device.type != "cuda":
        return f"there are no FP8 units ({device.type})"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < FIRST_UNITS:
        return f"a GPU of compute capability {major}.{minor} has no FP8 units"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"products of FP8 give float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None
