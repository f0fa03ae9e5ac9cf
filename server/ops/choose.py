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
from server.ops.backend import Arithmetic, AttentionChoice, Backend, LayeredBackend
from server.ops.communication import Communication
from server.ops.cpu import backend as native
from server.ops.cpu.attention import NativeAttention
from server.ops.cpu.build import NativeError
from server.ops.cpu.library import load
from server.ops.layer_ops import ForeignOps, LayerOps
from server.ops.torch import packed
from server.ops.torch.attention import TorchAttention
from server.quantization.fp8.scheme import FIRST_UNITS
from server.quantization.linear import QuantizedLinear

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
    cache_dtype: torch.dtype | None = None,
    *,
    deterministic: bool = False,
    comm: Communication | None = None,
    cpu_arithmetic: Arithmetic = "exact",
) -> Backend:
    """The best backend of a device that can compute a model.

    Args:
        model: loaded, its weights as they are stored.
        dtype: of activations.
        block_size: tokens a cache block.
        wanted: attention backend of the configuration.
        cache_dtype: of keys and values; None: that of activations.
        deterministic: a token's bits shall depend on nothing but its own sequence (`Backend.same_bits`).
        comm: with the other ranks, where the model is one of several parts.
        cpu_arithmetic: `Backend.arithmetic`.

    Raises:
        ModelError: the backend that is wanted, or every one, cannot; says why.
    """
    failed = "model_loading_config.deterministic cannot be honoured"
    if deterministic and comm is not None:
        raise ModelError(f"{failed} where a model is split over ranks: what they add up has another order")
    if device.type == "cuda" and deterministic:
        backend = _choose_fixed_order(model, dtype, device, block_size, wanted, cache_dtype)
    else:
        backend = _choose(model, dtype, device, block_size, wanted, cache_dtype, comm, cpu_arithmetic)
    if backend.arithmetic != cpu_arithmetic:
        refused = f"cpu_arithmetic {cpu_arithmetic!r} cannot be honoured by {backend.name}: {backend.reason}"
        raise ModelError(f"model_loading_config.{refused}")
    if deterministic and not backend.same_bits:
        raise ModelError(f"{failed}: sums of {backend.name} follow the number of rows: {backend.reason}")
    return backend


def _choose(
    model: DecoderWeights,
    dtype: torch.dtype,
    device: torch.device,
    block_size: int,
    wanted: Literal["auto"] | CudaName,
    cache_dtype: torch.dtype | None,
    comm: Communication | None,
    cpu_arithmetic: Arithmetic,
) -> Backend:
    if wanted != "auto" and device.type != "cuda":
        raise ModelError(f"attention_backend {wanted!r} is for NVIDIA GPUs; the device is {device.type}")
    if cache_dtype not in (None, dtype):
        _check_float8_cache(device)
    if device.type == "cpu":
        return _choose_cpu(model, dtype, block_size, comm, cpu_arithmetic)
    if device.type == "cuda":
        fitting = _CudaAttention(model, dtype, device, block_size, cache_dtype)
        return _choose_cuda(fitting, model, wanted, comm)
    reason = f"torch operations run on every device ({device.type}, {dtype})"
    attention = _torch_attention(model.spec, dtype, block_size, reason)
    return _layered(model, attention, LayerOps(), reason, comm)


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
    return LayeredBackend(attention, ForeignOps(model.computed_by), reason)


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
    model: DecoderWeights,
    dtype: torch.dtype,
    block_size: int,
    comm: Communication | None,
    mode: Arithmetic,
) -> Backend:
    unable = NativeAttention.capabilities.objection(model.spec, dtype, block_size)
    obstacle = unable or native.objection(model, dtype, 1 if comm is None else comm.size, mode)
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
            return native.NativeBackend(attention, library, comm, mode)
    unpacked = packed.objection(dtype)
    if unpacked is None:
        reason = f"weights packed by oneDNN; no own C++ kernels: {obstacle}"
        return _layered(model, attention, packed.PackedLayerOps(), reason, comm)
    reason = f"torch operations; no own C++ kernels: {obstacle}; not packed: {unpacked}"
    return _layered(model, attention, LayerOps(), reason, comm)


def _check_float8_cache(device: torch.device) -> None:
    """Raise ModelError where no backend keeps keys and values in FP8."""
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST_UNITS
    if not able:
        raise ModelError(
            "cache_config.cache_dtype 'fp8_e4m3' is for NVIDIA GPUs with FP8 units (compute capability 8.9); "
            f"this device ({device.type}) has none: set it to 'auto'"
        )


def _choose_cuda(
    fitting: _CudaAttention,
    model: DecoderWeights,
    wanted: Literal["auto"] | CudaName,
    comm: Communication | None,
) -> Backend:
    if wanted == "auto":
        attention = fitting.best()
    else:
        try:
            attention = fitting.choice(wanted, "attention_backend of the configuration")
        except ModelError as error:
            raise ModelError(f"attention_backend {wanted!r} does not run here: {error}") from error
    return _layered(model, attention, *_cuda_layer_ops(model, fitting.device, fitting.dtype), comm)


def _choose_fixed_order(
    model: DecoderWeights,
    dtype: torch.dtype,
    device: torch.device,
    block_size: int,
    wanted: Literal["auto"] | CudaName,
    cache_dtype: torch.dtype | None,
) -> Backend:
    """Own kernels alone: those of other projects choose the order of their sums themselves."""
    failed = "model_loading_config.deterministic cannot be honoured"
    if wanted not in ("auto", "triton"):
        raise ModelError(
            f"{failed}: attention_backend {wanted!r} promises no order of its sums; take 'triton'"
        )
    if cache_dtype not in (None, dtype):
        raise ModelError(f"{failed} with cache_config.cache_dtype: its kernels read the type of the weights")
    fitting = _CudaAttention(model, dtype, device, block_size, None)
    try:
        own = fitting.choice("triton", "own kernels, pieces of contexts do not depend on the batch")
        from server.ops.triton.attention import FixedOrderAttention
        from server.ops.triton.fixed_order import FixedOrderBackend, objection
    except (ImportError, ModelError) as error:
        raise ModelError(f"{failed}: {error}") from error
    reason = objection(model, dtype, torch.cuda.get_device_capability(device))
    if reason is not None:
        raise ModelError(f"{failed}: {reason}")
    return FixedOrderBackend(replace(own, make=FixedOrderAttention))


def _cuda_layer_ops(model: DecoderWeights, device: torch.device, dtype: torch.dtype) -> tuple[LayerOps, str]:
    if torch.cuda.get_device_capability(device) < (8, 0):
        return LayerOps(), f"torch operations run on every device ({device.type}, {dtype})"
    try:
        from server.ops.triton.layer_ops import TritonLayerOps
    except ImportError as error:
        return LayerOps(), f"torch operations: Triton cannot be imported ({error})"
    reason = "fused norms and activations; one token's products read weights at bandwidth"
    if any(isinstance(module, QuantizedLinear) and module.format_name == "fp8" for module in model.modules()):
        from server.ops.triton.float8_ops import Float8LayerOps

        return Float8LayerOps(), reason
    return TritonLayerOps(), reason


class _CudaAttention:
    """Which attention backends for NVIDIA GPUs can compute a model."""

    def __init__(
        self,
        model: DecoderWeights,
        dtype: torch.dtype,
        device: torch.device,
        block_size: int,
        cache_dtype: torch.dtype | None,
    ) -> None:
        self.device, self.dtype = device, dtype
        self._spec, self._block_size, self._cache_dtype = model.spec, block_size, cache_dtype
        self._compute_capability = torch.cuda.get_device_capability(device)

    def best(self) -> AttentionChoice:
        """What was measured fastest of those that can.

        Raises:
            ModelError: none can, not even torch's.
        """
        try:
            own = self.choice("triton", "own kernels")
        except ModelError as error:
            if self._cache_dtype not in (None, self.dtype):
                raise ModelError(
                    f"cache_config.cache_dtype 'fp8_e4m3' cannot be honoured: {error}"
                ) from error
            return _torch_attention(self._spec, self.dtype, self._block_size, f"torch operations: {error}")
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
            objection = capabilities.objection(self._spec, self.dtype, self._block_size, self._cache_dtype)
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
