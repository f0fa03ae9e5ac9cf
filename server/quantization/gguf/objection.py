"""Where weights cannot stay in GGUF's blocks; apart, for the package that reads them takes time to import."""

from __future__ import annotations

import torch


def objection(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why matrices in blocks are not multiplied as they are; None: they are."""
    if device.type != "cpu":
        return f"own kernels for it are for CPUs, the device is {device.type}"
    if dtype not in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        return f"own kernels multiply with it in float32 and bfloat16, not {name}"
    return None
