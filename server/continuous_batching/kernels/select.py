"""Which layer arithmetic runs, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from server.continuous_batching.kernels import native_kernels, packed
from server.continuous_batching.kernels.base import Kernels
from server.continuous_batching.native.build import NativeError
from server.continuous_batching.native.library import load

if TYPE_CHECKING:
    from server.continuous_batching.models.decoder import Decoder


def choose_kernels(device: torch.device, dtype: torch.dtype, model: Decoder) -> tuple[Kernels, str]:
    """(kernels, reason for the operator) for a device, a type of weights and a model."""
    if device.type == "cpu":
        return _choose_cpu(dtype, model)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        try:
            from server.continuous_batching.kernels.triton_backend import TritonKernels
        except ImportError as error:
            return Kernels(), f"torch operations: Triton cannot be imported ({error})"
        return TritonKernels(), "fused norms and activations; one token's products read weights at bandwidth"
    return Kernels(), f"torch operations run on every device ({device.type}, {dtype})"


def _choose_cpu(dtype: torch.dtype, model: Decoder) -> tuple[Kernels, str]:
    obstacle = native_kernels.objection(model, dtype)
    if obstacle is None:
        try:
            library = load()
        except NativeError as error:
            obstacle = str(error)
        else:
            return native_kernels.NativeKernels(library), "all layers in one call of own C++ kernels"
    unpacked = packed.objection(dtype)
    if unpacked is None:
        return packed.PackedKernels(), f"weights packed by oneDNN; no own C++ kernels: {obstacle}"
    return Kernels(), f"torch operations; no own C++ kernels: {obstacle}; not packed: {unpacked}"
