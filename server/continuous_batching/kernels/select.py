"""Which layer arithmetic runs, and why."""

from __future__ import annotations

import torch

from server.continuous_batching.kernels.base import Kernels


def choose_kernels(device: torch.device, dtype: torch.dtype) -> tuple[Kernels, str]:
    """(kernels, reason for the operator) for a device and a type of weights."""
    return Kernels(), f"torch operations run on every device ({device.type}, {dtype})"
