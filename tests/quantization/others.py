"""Checkpoints of formats beside GPTQ and GGUF, made of a small float model, and the floats they stand for by
other people's code: compressed-tensors, transformers, and AutoAWQ's layout written out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
Layer = Callable[[Tensor, int], tuple[Tensors, Tensor]]
"""(weight, seed) → (what is stored behind the layer's name, the float32 weight that it stands for)."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Place in a word → which of its eight outputs, from AutoAWQ's `pack`."""


def make(model: Path, out: Path, declared: dict[str, Any], layer: Layer) -> tuple[Path, Path]:
    """(the checkpoint, the float32 checkpoint that it stands for), side by side in directory `out`.

    Args:
        declared: the ``quantization_config``.
        layer: quantizes each projection of the decoder layers.
    """
    stored, floats = {}, {}
    for seed, (name, tensor) in enumerate(sorted(load_file(model / "model.safetensors").items())):
        if "_proj.weight" not in name:
            stored[name] = floats[name] = tensor
            continue
        parts, weight = layer(tensor, seed)
        stored |= {f"{name.removesuffix('weight')}{part}": value for part, value in parts.items()}
        floats[name] = weight.float()
    paths = out / "quantized", out / "float"
    for path, tensors in zip(paths, (stored, floats), strict=True):
        shutil.copytree(model, path)
        save({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    declare(paths[0], declared)
    return paths


def save(tensors: Tensors, path: Path) -> None:
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def declare(path: Path, quantization: dict[str, Any]) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))


def awq_layer(weight: Tensor, seed: int) -> tuple[Tensors, Tensor]:
    """Random codes in AutoAWQ's layout (version gemm, groups of 32), packed as its `WQLinear_GEMM` does."""
    outputs, inputs = weight.shape
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (inputs, outputs), generator=rng)
    zeros = torch.randint(0, 16, (inputs // 32, outputs), generator=rng)
    scales = (torch.rand(inputs // 32, outputs, generator=rng) * 0.04 + 0.01).half()
    floats = (codes - zeros.repeat_interleave(32, 0)).float() * scales.repeat_interleave(32, 0).float()
    return {"qweight": _awq_pack(codes), "qzeros": _awq_pack(zeros), "scales": scales}, floats.t()


def _awq_pack(codes: Tensor) -> Tensor:
    words = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
    for column in range(words.shape[1]):
        for place, output in enumerate(AWQ_ORDER):
            words[:, column] |= codes[:, column * 8 + output] << (place * 4)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def compressed(
    kind: str, *, inputs: dict[str, Any] | None = None, **weights: Any
) -> tuple[dict[str, Any], Layer]:
    """(``quantization_config``, what quantizes a layer) of compressed-tensors' compressor called `kind`.

    Args:
        inputs: how activations are quantized; if by a scale that is stored, it is 8 / 448.
        weights: how weights are.
    """
    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(kind)
    activations = None if inputs is None else QuantizationArgs(**inputs)
    group = {
        "targets": ["Linear"],
        "weights": args.model_dump(mode="json"),
        "input_activations": activations and activations.model_dump(mode="json"),
    }
    declared = {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
    }

    def layer(weight: Tensor, seed: int) -> tuple[Tensors, Tensor]:
        state = {"weight": weight} | _parameters(weight, args)
        packed = compressor.compress(state, scheme)
        floats = compressor.decompress(packed, scheme)["weight"]
        if activations is not None and not activations.dynamic:
            packed = packed | {"input_scale": torch.tensor([8 / 448])}
        return packed, floats

    return declared, layer


def _parameters(weight: Tensor, args: QuantizationArgs) -> Tensors:
    """Scales and zero points of a weight, rounded to nearest."""
    outputs, inputs = weight.shape
    if args.strategy == "tensor":
        groups = weight.reshape(1, -1)
    elif args.strategy == "block":
        height, width = args.block_structure
        blocks = [
            torch.stack([part.abs().max() for part in row.split(width, 1)]) for row in weight.split(height)
        ]
        return {"weight_scale": torch.stack(blocks) / 448}
    else:
        size = inputs if args.strategy == "channel" else args.group_size
        groups = weight.reshape(outputs, inputs // size, size)
    low, high = groups.amin(-1), groups.amax(-1)
    levels = 448.0 if args.type == "float" else 2**args.num_bits // 2 - 1.0
    if args.symmetric:
        return {"weight_scale": torch.maximum(-low, high) / levels}
    scale = (high - low) / (2**args.num_bits - 1)
    zero = (-(2 ** (args.num_bits - 1)) - low / scale).round()
    return {"weight_scale": scale, "weight_zero_point": zero.clamp(-8, 7).to(torch.int8)}


def fp8_layer(
    block: tuple[int, int] | None, per_output: bool = False, name: str = "weight_scale_inv"
) -> Layer:
    """FP8 with float32 scales; the floats by the published formula, ``number · scale``."""

    def layer(weight: Tensor, seed: int) -> tuple[Tensors, Tensor]:
        height, width = block or ((1, weight.shape[1]) if per_output else tuple(weight.shape))
        scales = torch.stack(
            [
                torch.stack([part.abs().max() / 448 for part in row.split(width, 1)])
                for row in weight.split(height)
            ]
        )
        across = scales.repeat_interleave(height, 0)[: weight.shape[0]]
        full = across.repeat_interleave(width, 1)[:, : weight.shape[1]]
        stored = (weight / full).to(torch.float8_e4m3fn)
        scale = scales if block or per_output else scales.reshape(())
        return {"weight": stored, name: scale}, stored.float() * full

    return layer
