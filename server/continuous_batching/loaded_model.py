"""The model of a configuration, and what computes it, before there is a cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from server.checkpoints.cache_scales import CacheScales
from server.checkpoints.errors import ModelError
from server.checkpoints.lengths import warn_beyond
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.phases import phase
from server.layers.rotary import Rotary, length_note
from server.layers.spec import ModelSpec
from server.models.config import ModelConfig
from server.models.decoder import Decoder
from server.models.load import load_model
from server.ops.backend import Backend
from server.ops.choose import choose_backend

CACHE_DTYPES = {"fp8_e4m3": torch.float8_e4m3fn}
"""Of `cache_config.cache_dtype`; ``auto`` is that of activations."""


def choose_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        ModelError: CUDA was asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("device 'cuda' was asked for, but torch finds no CUDA device")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, ready to compute on its device, before there is a cache.

    Attributes:
        config: of the checkpoint, for sequences of `max_length` tokens.
        dtype, cache_dtype: of activations, and of keys and values.
        cache_scales: of a cache in FP8; None: it is in the type of activations.
        rotaries: angles of each of its rotary embeddings.
        quantization: in what form quantized weights are multiplied and why; None: they never were.
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
    quantization: dict[str, str] | None

    def describe(self) -> dict[str, Any]:
        """What was chosen and why, for the operator."""
        dtype = str(self.dtype).removeprefix("torch.")
        floats = {"name": dtype, "reason": "the checkpoint is not quantized"}
        notes = [note for each in self.config.spec.rotaries if (note := length_note(each, self.max_length))]
        return {
            "device": str(self.device),
            "dtype": dtype,
            "cache_dtype": {
                "name": str(self.cache_dtype).removeprefix("torch."),
                "reason": "torch_dtype" if self.cache_scales is None else self.cache_scales.origin,
            },
            "num_threads": torch.get_num_threads(),
            "weights": self.quantization or floats,
            **({"positions": notes} if notes else {}),
            **self.backend.describe(),
        }


def load(config: ServerConfig) -> LoadedModel:
    """Read and load the model, and choose what computes it.

    Raises:
        ModelError: the checkpoint cannot be served as configured.
    """
    loading = config.model_loading_config
    with phase("model configuration, device"):
        device, dtype = choose_device(loading.device), getattr(torch, loading.torch_dtype)
        path = Path(loading.model_name_or_path)
        checkpoint = ModelConfig.load(path, trust_remote_code=loading.trust_remote_code)
        warn_beyond(path, checkpoint.hf, loading.model_max_length)
        max_length = loading.model_max_length or checkpoint.max_length
        checkpoint = checkpoint.served_to(max_length)
        rotaries = _rotaries(checkpoint.spec, max_length, dtype, device)
    with phase("weights"):
        model, dequantized = load_model(loading.source, checkpoint, dtype, device)
        cache = config.cache_config
        cache_dtype = CACHE_DTYPES.get(cache.cache_dtype, dtype)
        backend = choose_backend(
            model,
            dtype,
            device,
            cache.block_size,
            loading.attention_backend,
            cache_dtype,
            deterministic=loading.deterministic,
        )
        quantization = backend.prepare(model, dtype)
    weights = _both(quantization, dequantized)
    scales = CacheScales.read(path) if cache_dtype is not dtype else None
    return LoadedModel(
        checkpoint, max_length, device, dtype, cache_dtype, scales, rotaries, model, backend, weights
    )


def _both(kept: dict[str, str] | None, dequantized: dict[str, str] | None) -> dict[str, str] | None:
    """What multiplies where some weights stay quantized and some do not."""
    if kept is None or dequantized is None:
        return kept or dequantized
    return {key: f"{kept[key]}; {dequantized[key]}" for key in kept}


def _rotaries(
    spec: ModelSpec, max_length: int, dtype: torch.dtype, device: torch.device
) -> tuple[Rotary, ...]:
    try:
        return tuple(Rotary(each, max_length, dtype=dtype, device=device) for each in spec.rotaries)
    except ValueError as error:
        raise ModelError(str(error)) from error
