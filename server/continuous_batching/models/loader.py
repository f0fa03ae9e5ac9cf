"""Weights from safetensors straight to their place, without a second copy of the model in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from server.continuous_batching.layers.linear import WeightMap
from server.continuous_batching.models.config import ModelError

_DERIVED = ("rotary_emb.inv_freq",)
"""Tensors of old checkpoints that follow from the configuration."""


def load_weights(path: Path, targets: WeightMap, *, tied: bool, files: Sequence[Path] | None = None) -> None:
    """Fill every tensor of `targets` from safetensors files.

    Args:
        path: checkpoint directory.
        targets: checkpoint name → tensor to fill.
        tied: the output layer is the embedding, so that a stored copy of it is left alone.
        files: where the tensors are; None: in every ``*.safetensors`` of the directory.

    Raises:
        ModelError: no such files, a damaged one, or tensors that are missing, unknown or misshapen.
    """
    files = files or sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{path} holds no *.safetensors file")
    missing = set(targets)
    with tqdm(total=len(targets), desc="loading weights", unit="tensor", mininterval=1.0) as progress:
        for file in files:
            try:
                loaded = _load_file(file, targets, tied)
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{file} is not a readable safetensors file: {error}") from error
            missing -= loaded
            progress.update(len(loaded))
    if missing:
        raise ModelError(f"{path} lacks {len(missing)} tensors, the first is {min(missing)!r}")


def _load_file(file: Path, targets: WeightMap, tied: bool) -> set[str]:
    loaded = set()
    with safe_open(file, framework="pt") as tensors, torch.no_grad():
        for name in tensors.keys():  # noqa: SIM118 - not a mapping
            if name.endswith(_DERIVED) or (tied and name == "lm_head.weight"):
                continue
            if name not in targets:
                raise ModelError(f"{file} holds the tensor {name!r}, which this model does not have")
            target, tensor = targets[name], tensors.get_tensor(name)
            if tensor.shape != target.shape:
                raise ModelError(
                    f"{file}: {name!r} has shape {list(tensor.shape)}, expected {list(target.shape)}"
                )
            target.copy_(tensor)
            loaded.add(name)
    return loaded
