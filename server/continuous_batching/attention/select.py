"""Which attention backend runs, and why."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from server.continuous_batching.attention import native_attention
from server.continuous_batching.attention.base import AttentionBackend, AttentionShape
from server.continuous_batching.attention.torch_backend import TorchAttention
from server.continuous_batching.layers.rotary import Rotary
from server.continuous_batching.models.config import ModelError
from server.continuous_batching.native.build import NativeError
from server.continuous_batching.native.library import load

Backend = Callable[[AttentionShape, Rotary, Tensor], AttentionBackend[Any]]
"""Makes a backend for sizes, angles and the cache."""


PagedName = Literal["triton", "flash", "varlen"]
"""Backends for NVIDIA GPUs."""


def choose_attention(
    shape: AttentionShape, device: torch.device, wanted: Literal["auto"] | PagedName = "auto"
) -> tuple[Backend, str]:
    """(backend, reason for the operator) for a model on a device.

    Raises:
        ModelError: the backend that is wanted does not run here; says why.
    """
    if wanted != "auto":
        if device.type != "cuda":
            raise ModelError(f"attention_backend {wanted!r} is for NVIDIA GPUs; the device is {device.type}")
        try:
            return _load(wanted, shape, device), "attention_backend of the configuration"
        except ImportError as error:
            raise ModelError(f"attention_backend {wanted!r} does not run here: {error}") from error
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
    try:
        own = _load("triton", shape, device)
    except ImportError as error:
        return TorchAttention, f"torch operations: {error}"
    try:
        flash = _load("flash", shape, device)
    except ImportError as error:
        return own, f"own kernels; no FlashAttention 3: {error}"
    return flash, "FlashAttention 3 of vLLM for prompts, own kernels for decoding"


def _load(name: PagedName, shape: AttentionShape, device: torch.device) -> Backend:
    """The backend of that name.

    Raises:
        ImportError: something that it needs is not there; says what.
    """
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 0):
        raise ImportError(f"Triton kernels need compute capability 8.0, the GPU has {major}.{minor}")
    widest = 256 if major in (9, 10) else 128  # prompts' keys and values of 256 take 192 KiB of shared memory
    if not 16 <= shape.head_dim <= widest:
        raise ImportError(
            f"Triton kernels take heads of 16 to {widest} numbers on this GPU, the model has {shape.head_dim}"
        )
    from server.continuous_batching.attention.triton_backend import TritonAttention

    if name == "triton":
        return TritonAttention
    if name == "varlen":
        from server.continuous_batching.attention.varlen_backend import VarlenAttention, varlen_attention

        varlen_attention(shape)
        return VarlenAttention
    if major != 9 or shape.dtype == torch.float32:
        raise ImportError(f"it is not for {shape.dtype} on compute capability {major}.{minor}")
    from server.continuous_batching.attention.flash_backend import FlashAttention, flash_attention

    flash_attention()
    return FlashAttention
