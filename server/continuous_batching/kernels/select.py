"""Which layer arithmetic runs, and why."""

from __future__ import annotations

import torch

from server.continuous_batching.kernels.base import Kernels


def choose_kernels(device: torch.device, dtype: torch.dtype) -> tuple[Kernels, str]:
    """(kernels, reason for the operator) for a device and a type of weights."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        try:
            from server.continuous_batching.kernels.triton_backend import TritonKernels
        except ImportError as error:
            return Kernels(), f"torch operations: Triton cannot be imported ({error})"
        return TritonKernels(), "fused norms and activations; one token's products read weights at bandwidth"
    return Kernels(), f"torch operations run on every device ({device.type}, {dtype})"
