"""Which backend computes a model, and why: chosen here, once, when the model is loaded."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, Literal

import torch

from server.checkpoints.errors import ModelError
from server.layers.spec import ModelSpec
from server.layers.weights import DecoderWeights
from server.ops.attention import AttentionBackend
from server.ops.backend import AttentionChoice, Backend, LayeredBackend
from server.ops.communication import Communication
from server.ops.cpu import backend as native
from server.ops.cpu.attention import NativeAttention
from server.ops.cpu.build import NativeError
from server.ops.cpu.library import load
from server.ops.layer_ops import LayerOps
from server.ops.torch import packed
from server.ops.torch.attention import TorchAttention

CudaName = Literal["triton", "flash", "varlen", "xformers"]
"""Attention backends for NVIDIA GPUs."""
_CUDA_BACKENDS: dict[CudaName, tuple[str, str]] = {
    "triton": ("server.ops.triton.attention", "TritonAttention"),
    "flash": ("server.ops.triton.flash_attention", "FlashAttention"),
    "varlen": ("server.ops.triton.varlen_attention", "VarlenAttention"),
    "xformers": ("server.ops.triton.xformers_attention", "XformersAttention"),
}
"""Module and class of each: imported only where they are asked for, for they need Triton."""


def choose_backend(
    model: DecoderWeights,
    dtype: torch.dtype,
    device: torch.device,
    block_size: int,
    wanted: Literal["auto"] | CudaName = "auto",
    comm: Communication | None = None,
) -> Backend:
    """The best backend of a device that can compute a model.

    Args:
        model: loaded, its weights as they are stored.
        dtype: of activations and cache.
        block_size: tokens a cache block.
        wanted: attention backend of the configuration.
        comm: with the other ranks, where the model is one of several parts.

    Raises:
        ModelError: the backend that is wanted, or every one, cannot; says why.
    """
    if wanted != "auto" and device.type != "cuda":
        raise ModelError(f"attention_backend {wanted!r} is for NVIDIA GPUs; the device is {device.type}")
    if device.type == "cpu":
        return _choose_cpu(model, dtype, block_size, comm)
    if device.type == "cuda":
        return _choose_cuda(model, dtype, device, block_size, wanted, comm)
    reason = f"torch operations run on every device ({device.type}, {dtype})"
    attention = _torch_attention(model.spec, dtype, block_size, reason)
    return _layered(model, attention, LayerOps(), reason, comm)


class _ForeignOps(LayerOps):
    """Stands for layers that others' modules compute."""

    def __init__(self, name: str) -> None:
        self.name = name


def _layered(
    model: DecoderWeights,
    attention: AttentionChoice,
    ops: LayerOps,
    reason: str,
    comm: Communication | None,
) -> Backend:
    """Layer by layer, by `ops` unless others' modules compute the model."""
    if model.computed_by is None:
        return LayeredBackend(attention, ops, reason, comm)
    reason = (
        f"modules of {model.computed_by} over the paged cache: the model type has no file in server/models"
    )
    return LayeredBackend(attention, _ForeignOps(model.computed_by), reason)


def _torch_attention(spec: ModelSpec, dtype: torch.dtype, block_size: int, reason: str) -> AttentionChoice:
    """What runs everywhere.

    Raises:
        ModelError: not even that can compute the model.
    """
    objection = TorchAttention.capabilities.objection(spec, dtype, block_size)
    if objection is not None:
        raise ModelError(f"no attention backend can compute this model; that of torch: {objection}")
    return AttentionChoice(TorchAttention.name, TorchAttention, TorchAttention.capabilities, reason)


def _choose_cpu(
    model: DecoderWeights, dtype: torch.dtype, block_size: int, comm: Communication | None
) -> Backend:
    unable = NativeAttention.capabilities.objection(model.spec, dtype, block_size)
    obstacle = unable or native.objection(model, dtype)
    if comm is not None:
        obstacle = f"{comm.size} ranks add up their products within each layer, the C++ pass is one call"
    if unable is None:
        try:
            library = load()
        except NativeError as error:
            unable = obstacle = str(error)
    if unable is not None:
        reason = f"torch operations; no own C++ kernels: {unable}"
        attention = _torch_attention(model.spec, dtype, block_size, reason)
    else:
        make, able = partial(NativeAttention, library=library), NativeAttention.capabilities
        attention = AttentionChoice(NativeAttention.name, make, able, "own C++ kernels")
        if obstacle is None:
            return native.NativeBackend(attention, library)
    unpacked = packed.objection(dtype)
    if unpacked is None:
        reason = f"weights packed by oneDNN; no own C++ kernels: {obstacle}"
        return _layered(model, attention, packed.PackedLayerOps(), reason, comm)
    reason = f"torch operations; no own C++ kernels: {obstacle}; not packed: {unpacked}"
    return _layered(model, attention, LayerOps(), reason, comm)


def _choose_cuda(
    model: DecoderWeights,
    dtype: torch.dtype,
    device: torch.device,
    block_size: int,
    wanted: Literal["auto"] | CudaName,
    comm: Communication | None,
) -> Backend:
    fitting = _CudaAttention(model, dtype, device, block_size)
    if wanted == "auto":
        attention = fitting.best()
    else:
        try:
            attention = fitting.choice(wanted, "attention_backend of the configuration")
        except ModelError as error:
            raise ModelError(f"attention_backend {wanted!r} does not run here: {error}") from error
    return _layered(model, attention, *_cuda_layer_ops(device, dtype), comm)


def _cuda_layer_ops(device: torch.device, dtype: torch.dtype) -> tuple[LayerOps, str]:
    if torch.cuda.get_device_capability(device) < (8, 0):
        return LayerOps(), f"torch operations run on every device ({device.type}, {dtype})"
    try:
        from server.ops.triton.layer_ops import TritonLayerOps
    except ImportError as error:
        return LayerOps(), f"torch operations: Triton cannot be imported ({error})"
    return TritonLayerOps(), "fused norms and activations; one token's products read weights at bandwidth"


class _CudaAttention:
    """Which attention backends for NVIDIA GPUs can compute a model."""

    def __init__(
        self, model: DecoderWeights, dtype: torch.dtype, device: torch.device, block_size: int
    ) -> None:
        self._spec, self._dtype, self._block_size = model.spec, dtype, block_size
        self._compute_capability = torch.cuda.get_device_capability(device)

    def best(self) -> AttentionChoice:
        """What was measured fastest of those that can.

        Raises:
            ModelError: none can, not even torch's.
        """
        try:
            own = self.choice("triton", "own kernels")
        except ModelError as error:
            return _torch_attention(self._spec, self._dtype, self._block_size, f"torch operations: {error}")
        try:
            return self.choice("flash", "FlashAttention 3 of vLLM for prompts, own kernels for decoding")
        except ModelError as error:
            return replace(own, reason=f"own kernels; no FlashAttention 3: {error}")

    def choice(self, name: CudaName, reason: str) -> AttentionChoice:
        """The backend of that name.

        Raises:
            ModelError: something that it needs is not there, or it cannot compute the model; says what.
        """
        major, minor = self._compute_capability
        if (major, minor) < (8, 0):
            raise ModelError(f"Triton kernels need compute capability 8.0, the GPU has {major}.{minor}")
        if name == "flash" and major != 9:
            raise ModelError(f"it is not for compute capability {major}.{minor}")
        try:
            backend = _cuda_backend(name)
            capabilities = backend.capabilities
            if major not in (9, 10):  # prompts' keys and values of 256 take 192 KiB of shared memory
                capabilities = replace(capabilities, largest_head=128)
            objection = capabilities.objection(self._spec, self._dtype, self._block_size)
            if objection is not None:
                raise ModelError(objection)
            backend.check_library()
        except ImportError as error:
            raise ModelError(str(error)) from error
        return AttentionChoice(name, backend, capabilities, reason)


def _cuda_backend(name: CudaName) -> type[AttentionBackend[Any]]:
    """The class of that name.

    Raises:
        ImportError: Triton cannot be imported.
    """
    module, backend = _CUDA_BACKENDS[name]
    found: type[AttentionBackend[Any]] = getattr(import_module(module), backend)
    return found
