"""Which attention backend runs, and why."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from server.continuous_batching.attention import native_attention
from server.continuous_batching.attention.base import AttentionBackend, AttentionShape
from server.continuous_batching.attention.torch_backend import TorchAttention
from server.continuous_batching.layers.rotary import Rotary
from server.continuous_batching.native.build import NativeError
from server.continuous_batching.native.library import load

Backend = Callable[[AttentionShape, Rotary, Tensor], AttentionBackend[Any]]
"""Makes a backend for sizes, angles and the cache."""


def choose_attention(shape: AttentionShape, device: torch.device) -> tuple[Backend, str]:
    """(backend, reason for the operator) for a model on a device."""
    if device.type == "cuda":
        return _choose_cuda(shape, device)
    if device.type == "cpu":
        return _choose_cpu(shape)
    return TorchAttention, f"torch operations run on every device ({device.type})"


def _choose_cpu(shape: AttentionShape) -> tuple[Backend, str]:
    obstacle = native_attention.objection(shape)
    if obstacle is None:
        try:
            library = load()
        except NativeError as error:
            obstacle = str(error)
        else:
            return partial(native_attention.NativeAttention, library=library), "own C++ kernels"
    return TorchAttention, f"torch operations; no own C++ kernels: {obstacle}"


def _choose_cuda(shape: AttentionShape, device: torch.device) -> tuple[Backend, str]:
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 0):
        return TorchAttention, f"Triton kernels need compute capability 8.0, the GPU has {major}.{minor}"
    try:
        from server.continuous_batching.attention.triton_backend import TritonAttention
    except ImportError as error:
        return TorchAttention, f"Triton cannot be imported: {error}"
    if major != 9 or shape.dtype == torch.float32:
        return TritonAttention, f"own kernels for {shape.dtype} on compute capability {major}.{minor}"
    try:
        from server.continuous_batching.attention.flash_backend import FlashAttention, flash_attention

        flash_attention()
    except ImportError as error:
        return TritonAttention, f"own kernels; no FlashAttention 3: {error}"
    return FlashAttention, "FlashAttention 3 of vLLM for prompts, own kernels for decoding"
