"""Loads GPTQ checkpoints for this server (`is_gptq_quantized`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from server.gptq.checkpoint import GPTQCheckpoint
from server.static_batching.config import WorkerConfig


def load_gptq(
    config: WorkerConfig, device: torch.device, dtype: torch.dtype | None
) -> tuple[Any, dict[str, str]]:
    """The model with quantised layers, and which kernels multiply and why.

    Args:
        dtype: of activations; None: bfloat16 on a CPU, else that of the checkpoint's scales.

    Raises:
        GPTQError: the checkpoint cannot be served.
    """
    from server.gptq.swap import load_quantised

    checkpoint = GPTQCheckpoint.open(_directory(config))
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cpu" else checkpoint.scales_dtype
    return load_quantised(checkpoint, dtype=dtype, device=device, trust_remote_code=config.trust_remote_code)


def _directory(config: WorkerConfig) -> Path:
    """The checkpoint's directory; a model of the hub is downloaded."""
    path = Path(config.model_name_or_path)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.py"]
    return Path(snapshot_download(str(path), revision=config.revision, allow_patterns=wanted))
