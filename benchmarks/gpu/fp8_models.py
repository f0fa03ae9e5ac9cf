"""Checkpoints in FP8 to measure with: real files of a small random one, and large ones made up in place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.checkpoints import SHAPES, LlamaShape, describe_llama, make_llama
from server.checkpoints.cache_scales import CacheScales
from server.checkpoints.files import StoredTensor
from server.models.decoder import Decoder
from server.quantization.formats.scaled import OpenScaled, open_scaled
from server.quantization.fp8.scheme import BLOCK, Activations

SMALL = LlamaShape(512, 4, 8, 4, 1_536, vocab=2_048)
GREATEST = 448.0
PROJECTIONS = {"self_attn": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}
WAYS: dict[str, dict[str, Any]] = {
    "output": {"activation_scheme": "dynamic"},
    "static": {"activation_scheme": "static"},
    "block": {"activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]},
}
"""What shares a scale → ``quantization_config``; `static`: of a matrix, activations have a scale too."""


def make_pair(directory: Path, way: str) -> tuple[Path, Path]:
    """(a small checkpoint in FP8, the bfloat16 checkpoint of what its weights stand for)."""
    source = make_llama(directory / "small", SMALL, dtype="float32")
    stored, floats = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if "_proj.weight" not in name:
            stored[name] = floats[name] = tensor.bfloat16()
            continue
        numbers, scale, floats[name] = _quantized(tensor, way)
        layer = name.removesuffix(".weight")
        stored |= {name: numbers, f"{layer}.weight_scale": scale}
        if way == "static":
            stored[f"{layer}.input_scale"] = torch.tensor([8.0 / GREATEST])
    paths = directory / f"small-{way}", directory / f"small-{way}-floats"
    for path, tensors in zip(paths, (stored, floats), strict=True):
        shutil.copytree(source, path, dirs_exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", **WAYS[way]}
    (paths[0] / "config.json").write_text(json.dumps(config))
    return paths


def _quantized(weight: Tensor, way: str) -> tuple[Tensor, Tensor, Tensor]:
    """(float8 numbers, scales, the bfloat16 weight that they stand for)."""
    outputs, inputs = weight.shape
    height, width = {"output": (1, inputs), "static": (outputs, inputs), "block": (BLOCK, BLOCK)}[way]
    tiles = weight.view(outputs // height, height, inputs // width, width)
    scale = tiles.abs().amax((1, 3)) / GREATEST
    full = scale.repeat_interleave(height, 0).repeat_interleave(width, 1)
    numbers = (weight / full).clamp(-GREATEST, GREATEST).to(torch.float8_e4m3fn)
    stored = scale.reshape(()) if way == "static" else scale
    return numbers, stored, (numbers.float() * full).bfloat16()


def load_large(
    shape: str, directory: Path, *, float8: bool, beams: int = 512, length: int = 4096, **cache: Any
) -> Any:
    """An `LLM` of that shape with random weights on the GPU, in FP8 with a scale for each output or bfloat16.

    Args:
        beams, length: `batch_max_beams` and `model_max_length`.
        cache: keys of `cache_config`.
    """
    from server.continuous_batching import LLM

    path = directory / f"{shape}-fp8-bench"
    path.mkdir(parents=True, exist_ok=True)
    describe_llama(path, SHAPES[shape])
    checkpoint = _described(path, SHAPES[shape]) if float8 else None
    with (
        mock.patch("server.models.load.load_weights", _random),
        mock.patch("server.models.load.open_format", lambda *_: checkpoint),
        mock.patch.object(CacheScales, "read", lambda _: CacheScales({})),
    ):
        return LLM(
            path,
            model_loading_config={"torch_dtype": "bfloat16", "model_max_length": length},
            batcher_config={
                "batch_max_tokens": 16384,
                "batch_max_beams": beams,
                "prefill_chunk_tokens": 8192,
            },
            cache_config={"enable_prefix_cache": False, "num_blocks_cpu": 0, **cache},
        )


def _described(path: Path, shape: LlamaShape) -> OpenScaled:
    """The description of a checkpoint of that shape, without files."""
    keys = shape.hidden // shape.heads * shape.kv_heads
    sizes = {"q": (shape.hidden, shape.hidden), "k": (keys, shape.hidden), "v": (keys, shape.hidden)}
    sizes |= {"o": (shape.hidden, shape.hidden), "down": (shape.hidden, shape.inner)}
    sizes |= dict.fromkeys(("gate", "up"), (shape.inner, shape.hidden))
    stored: dict[str, StoredTensor] = {}
    for index in range(shape.layers):
        for part, names in PROJECTIONS.items():
            for name in names:
                layer = f"model.layers.{index}.{part}.{name}_proj"
                stored[f"{layer}.weight"] = StoredTensor(path, "F8_E4M3", sizes[name])
                stored[f"{layer}.weight_scale"] = StoredTensor(path, "F32", (sizes[name][0], 1))
    return open_scaled(path, path, stored, path, block=None, activations=Activations())


def _random(path: Path, model: Decoder, quantized: Any) -> None:
    """Weights made up in place: norms about 1, others small, whether they are floats or FP8 with scales."""
    torch.manual_seed(0)
    for name, target in model.weights().items():
        tensor = target.tensor
        if name.endswith("norm.weight"):
            tensor.fill_(1.0)
        elif name.endswith("weight_scale"):
            tensor.fill_(0.02 / 64)
        elif tensor.dtype == torch.float8_e4m3fn:
            tensor.copy_(torch.empty(tensor.shape, dtype=torch.bfloat16, device=tensor.device).normal_(0, 64))
        else:
            tensor.normal_(0.0, 0.02)
