"""The model of a configuration, and what computes it, before there is a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from server.checkpoints.cache_scales import CacheScales
from server.checkpoints.errors import ModelError
from server.checkpoints.lengths import warn_beyond
from server.checkpoints.plain_config import PlainConfig
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.phases import phase
from server.device.collectives import Group
from server.device.triton_support import prepare_launches
from server.layers.rotary import Rotary, length_note
from server.layers.shard import WHOLE, Shard
from server.layers.spec import ModelSpec
from server.models.config import ModelConfig
from server.models.decoder import Decoder
from server.models.load import load_model
from server.ops.backend import Backend
from server.ops.choose import choose_backend

CACHE_DTYPES = {"fp8_e4m3": torch.float8_e4m3fn}
"""Of `cache_config.cache_dtype`; ``auto`` is that of activations."""


def choose_device(wanted: str, shard: Shard = WHOLE) -> torch.device:
    """`auto` is CUDA where there is one; of several ranks, each has a GPU of its own.

    Raises:
        ModelError: CUDA was asked for and there is none, or there are fewer GPUs than ranks.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("device 'cuda' was asked for, but torch finds no CUDA device")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu" or shard.ranks == 1:
        return torch.device(wanted)
    if shard.ranks > (there_are := torch.cuda.device_count()):
        raise ModelError(
            f"parallel_config.tensor_parallel_size is {shard.ranks}, but {there_are} GPUs are visible"
        )
    device = torch.device("cuda", shard.rank)
    torch.cuda.set_device(device)
    return device


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, ready to compute on its device, before there is a cache.

    Attributes:
        config: of the checkpoint, for sequences of `max_length` tokens.
        dtype, cache_dtype: of activations, and of keys and values.
        cache_scales: of a cache in FP8; None: it is in the type of activations.
        rotaries: angles of each of its rotary embeddings.
        weights_bytes: memory of the weights on this device, as they were read.
        quantization: in what form quantized weights are multiplied and why; None: they never were.
        group: of the ranks, where the model is split.
    """

    config: ModelConfig
    max_length: int
    device: torch.device
    dtype: torch.dtype
    cache_dtype: torch.dtype
    cache_scales: CacheScales | None
    rotaries: tuple[Rotary, ...]
    model: Decoder
    backend: Backend
    weights_bytes: int
    quantization: dict[str, str] | None
    group: Group | None = None

    @property
    def cache_dtype_name(self) -> str:
        """As torch calls it."""
        return str(self.cache_dtype).removeprefix("torch.")

    def describe(self) -> dict[str, Any]:
        """What was chosen and why, for the operator."""
        dtype = str(self.dtype).removeprefix("torch.")
        floats = {"name": dtype, "reason": "the checkpoint is not quantized"}
        notes = [note for each in self.config.spec.rotaries if (note := length_note(each, self.max_length))]
        return {
            "device": str(self.device),
            "dtype": dtype,
            "cache_dtype": {
                "name": self.cache_dtype_name,
                "reason": "torch_dtype" if self.cache_scales is None else self.cache_scales.origin,
            },
            "num_threads": torch.get_num_threads(),
            "weights": self.quantization or floats,
            **({"positions": notes} if notes else {}),
            **self.backend.describe(),
        }


Join = Callable[[torch.device], Group]
"""Joins the ranks of a split model, once each has read its weights."""


def load(
    config: ServerConfig, shard: Shard = WHOLE, join: Join | None = None, hf: PlainConfig | None = None
) -> LoadedModel:
    """Read and load the model, or a rank's part of it, and choose what computes it.

    Args:
        join: where there are several ranks.
        hf: configuration of the checkpoint, where it has been read.

    Raises:
        ModelError: the checkpoint cannot be served as configured.
    """
    loading = config.model_loading_config
    with phase("model configuration, device"):
        device, dtype = choose_device(loading.device, shard), getattr(torch, loading.torch_dtype)
        if device.type == "cuda":
            prepare_launches()
        path = Path(loading.model_name_or_path)
        checkpoint = ModelConfig.load(path, trust_remote_code=loading.trust_remote_code, hf=hf)
        warn_beyond(path, checkpoint.hf, loading.model_max_length)
        max_length = loading.model_max_length or checkpoint.max_length
        checkpoint = checkpoint.served_to(max_length).split(shard.ranks)
        rotaries = _rotaries(checkpoint.spec, max_length, dtype, device)
    with phase("weights"):
        model, dequantized = load_model(loading.source, checkpoint, dtype, device, shard)
        size = _bytes_of(model)
        group = None if join is None else join(device)
        cache = config.cache_config
        cache_dtype = CACHE_DTYPES.get(cache.cache_dtype, dtype)
        if group is not None and cache_dtype is not dtype:
            raise ModelError("cache_config.cache_dtype is not supported where a model is split over ranks")
        backend = choose_backend(
            model,
            dtype,
            device,
            cache.block_size,
            loading.attention_backend,
            cache_dtype,
            deterministic=loading.deterministic,
            comm=group,
            cpu_arithmetic=loading.cpu_arithmetic,
        )
        quantization = backend.prepare(model, dtype)
    return LoadedModel(
        checkpoint,
        max_length,
        device,
        dtype,
        cache_dtype,
        CacheScales.read(path) if cache_dtype is not dtype else None,
        rotaries,
        model,
        backend,
        size,
        _both(quantization, dequantized),
        group,
    )


def _both(kept: dict[str, str] | None, dequantized: dict[str, str] | None) -> dict[str, str] | None:
    """What multiplies where some weights stay quantized and some do not."""
    if kept is None or dequantized is None:
        return kept or dequantized
    return {key: f"{kept[key]}; {dequantized[key]}" for key in kept}


def _bytes_of(model: Decoder) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())  # one may have two names


def _rotaries(
    spec: ModelSpec, max_length: int, dtype: torch.dtype, device: torch.device
) -> tuple[Rotary, ...]:
    try:
        return tuple(Rotary(each, max_length, dtype=dtype, device=device) for each in spec.rotaries)
    except ValueError as error:
        raise ModelError(str(error)) from error
