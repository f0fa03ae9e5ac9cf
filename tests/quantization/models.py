"""Small models with their quantized twins, and the floats these stand for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from server.quantization.gptq.checkpoint import GPTQCheckpoint
from tests.quantization.checkpoints import filled_linear
from tools.round_to_nearest import Recipe, quantize_checkpoint


def quantized(model: Path, out: Path, **recipe: Any) -> Path:
    """`model`, rounded to nearest."""
    quantize_checkpoint(model, out, Recipe(**recipe))
    return out


def shuffle_groups(path: Path, orders: dict[str, int]) -> None:
    """Give layers a ``desc_act`` order: name part → seed of the order that layers with it share.

    The codes stay where they are, so that the weights change, as any other random ones would do.
    """
    file = path / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        seed = next((seed for part, seed in orders.items() if part in name), None)
        if name.endswith("g_idx") and seed is not None:
            permutation = torch.randperm(len(tensor), generator=torch.Generator().manual_seed(seed))
            tensors[name] = tensor[permutation]
    save_file(tensors, file, metadata={"format": "pt"})
    change_config(path, desc_act=True)


def change_config(path: Path, **fields: Any) -> None:
    """Declare other `fields` of the quantization, in both files that hold them."""
    for name, section in (("config.json", "quantization_config"), ("quantize_config.json", None)):
        config = json.loads((path / name).read_text())
        (config if section is None else config[section]).update(fields)
        (path / name).write_text(json.dumps(config))


def dequantized(path: Path, out: Path) -> Path:
    """The float32 checkpoint that the quantized one in `path` stands for."""
    checkpoint = GPTQCheckpoint.open(path)
    tensors: dict[str, torch.Tensor] = {}
    for file in checkpoint.files:
        tensors |= load_file(file)
    for layer in checkpoint.layers:
        (weight,) = filled_linear(checkpoint, [layer]).quantized_weights()
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            tensors.pop(f"{layer}.{part}", None)
        tensors[f"{layer}.weight"] = weight.dequantized(torch.float32)
    shutil.copytree(path, out, ignore=shutil.ignore_patterns("*.safetensors*", "quantize_config.json"))
    config = json.loads((out / "config.json").read_text())
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    floats = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    save_file(floats, out / "model.safetensors", metadata={"format": "pt"})
    return out
