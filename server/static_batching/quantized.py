"""Loads checkpoints whose weights are in one of this project's formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from server.checkpoints.errors import ModelError
from server.quantization.formats.registry import NONE, config_fields, find_format, refuse_declared
from server.static_batching.config import WorkerConfig


def load_quantized(
    config: WorkerConfig, device: torch.device, dtype: torch.dtype | None, weights: str
) -> tuple[Any, dict[str, str]] | None:
    """The model with quantized layers, and what multiplies and why; None: transformers reads the checkpoint,
    with a quantizer of its own where it has one.

    Args:
        dtype: of activations; None: what the format says.
        weights: the format of files to load, as `load_model` chose it.

    Raises:
        ModelError: configuration and checkpoint disagree, or it cannot be served.
    """
    path = Path(config.model_name_or_path)
    found = find_format(path, config.weights)
    if found is None:
        if config.weights.format == NONE or not _transformers_reads(path):
            refuse_declared(path)
        return None
    if weights == "pickle":
        raise ModelError(
            f"{path}: quantized weights are loaded from safetensors alone: set use_safetensors to true"
        )
    checkpoint = found.open(path, config.weights.options)
    from server.quantization import swap

    dtype = dtype or checkpoint.default_dtype(device)
    return swap.load_quantized(
        checkpoint, dtype=dtype, device=device, trust_remote_code=config.trust_remote_code
    )


def _transformers_reads(path: Path) -> bool:
    """Whether transformers has a quantizer for what the checkpoint declares, for it ignores others."""
    from transformers.quantizers.auto import AutoHfQuantizer

    declared = config_fields(path).get("quantization_config")
    return isinstance(declared, dict) and bool(AutoHfQuantizer.supports_quant_method(declared))
