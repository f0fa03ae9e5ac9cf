"""Round-to-nearest quantization of a checkpoint, file by file, in GPTQ's format."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from server.checkpoints.errors import ModelError
from server.checkpoints.files import read_json, stored_tensors
from server.quantization.gptq.packing import pack_columns, pack_rows, shift_zeros


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a checkpoint is to be quantized; fields as in `GPTQConfig`."""

    bits: int = 4
    group_size: int = 128
    sym: bool = True
    desc_act: bool = False

    @property
    def checkpoint_format(self) -> str:
        """v1, as everything reads it, where it can hold the zero points."""
        return "gptq" if self.sym else "gptq_v2"

    def config(self) -> dict[str, Any]:
        """The content of `quantize_config.json`."""
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "desc_act": self.desc_act,
            "sym": self.sym,
            "lm_head": False,
            "quant_method": "gptq",
            "checkpoint_format": self.checkpoint_format,
            "pack_dtype": "int32",
            "meta": {"quantizer": ["round-to-nearest"]},
        }


def quantize_weight(weight: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """The tensors of one layer.

    The scale of a group spans its values, symmetric about 0 or from the least to the greatest; codes
    are rounded against the scale as it is stored.

    Args:
        weight: [outputs, inputs], inputs a multiple of the group size.
    """
    outputs, inputs = weight.shape
    group_size = inputs if recipe.group_size == -1 else recipe.group_size
    groups = weight.float().reshape(outputs, -1, group_size)
    highest = (1 << recipe.bits) - 1
    least = groups.amin(-1).clamp(max=0.0)
    greatest = groups.amax(-1).clamp(min=0.0)
    if recipe.sym:
        greatest = torch.maximum(-least, greatest)
        least = -greatest
    scales = ((greatest - least) / highest).half()
    scales = scales.clamp(min=torch.finfo(torch.half).tiny)
    if recipe.sym:
        zeros = torch.full_like(scales, (highest + 1) // 2, dtype=torch.float32)
    else:
        zeros = (-least / scales.float()).round().clamp(0, highest)
    codes = (groups / scales.float().unsqueeze(-1)).round() + zeros.unsqueeze(-1)
    codes = codes.clamp(0, highest).to(torch.uint8).view(outputs, inputs)
    packed_zeros = pack_columns(zeros.t().to(torch.uint8).contiguous(), recipe.bits)
    offset = 1 if recipe.checkpoint_format == "gptq" else 0
    return {
        "qweight": pack_rows(codes.t().contiguous(), recipe.bits),
        "qzeros": shift_zeros(packed_zeros, recipe.bits, -offset),
        "scales": scales.t().contiguous(),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // group_size,
    }


def quantize_checkpoint(model: Path, out: Path, recipe: Recipe) -> None:
    """Write directory `out` with every linear layer of `model` quantized, the output layer left alone.

    One file of weights at a time is in memory.

    Raises:
        ModelError: not a float safetensors checkpoint, or layers that cannot be quantized so.
    """
    if recipe.desc_act:
        raise ModelError("round to nearest looks at no activations: desc_act needs gptq")
    try:
        config = read_json(model / "config.json")
        files = sorted({tensor.file for tensor in stored_tensors(model).values()})
    except ModelError as error:
        raise ModelError(str(error)) from error
    if "quantization_config" in config:
        raise ModelError(f"{model} is quantized already")
    layers = linear_layers(model)
    out.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    with tqdm(total=len(layers), desc="quantizing", unit="layer") as progress:
        for file in files:
            tensors = _quantize_file(file, layers, recipe, progress)
            save_file(tensors, out / file.name, metadata={"format": "pt"})
            places |= dict.fromkeys(tensors, file.name)
    _write_rest(model, out, recipe, config, places if len(files) > 1 else {})


def linear_layers(model: Path) -> dict[str, bool]:
    """Names of the linear layers of a checkpoint's architecture but its output layer; whether the
    weight lies [inputs, outputs], as in GPT-2."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(model)))
    head = skeleton.get_output_embeddings()
    return {
        name: isinstance(module, Conv1D)
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def _quantize_file(file: Path, layers: dict[str, bool], recipe: Recipe, progress: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    with safe_open(file, framework="pt") as source:
        for name in source.keys():  # noqa: SIM118 - not a mapping
            tensor = source.get_tensor(name)
            layer = name.removesuffix(".weight")
            if not name.endswith(".weight") or layer not in layers:
                tensors[name] = tensor
                continue
            weight = tensor.t() if layers[layer] else tensor
            _check(layer, weight, recipe)
            for part, value in quantize_weight(weight, recipe).items():
                tensors[f"{layer}.{part}"] = value
            progress.update()
    return tensors


def _check(layer: str, weight: Tensor, recipe: Recipe) -> None:
    outputs, inputs = weight.shape
    per_word = 32 // recipe.bits
    if inputs % max(recipe.group_size, per_word):
        raise ModelError(f"{layer}: {inputs} inputs are not a multiple of {max(recipe.group_size, per_word)}")
    if outputs % per_word:
        raise ModelError(f"{layer}: {outputs} outputs are not a multiple of {per_word}")


def _write_rest(
    model: Path, out: Path, recipe: Recipe, config: dict[str, Any], places: dict[str, str]
) -> None:
    """Configuration, index and everything that is not a weight."""
    for file in model.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja", ".model", ".txt", ".py"):
            shutil.copyfile(file, out / file.name)
    index = out / "model.safetensors.index.json"
    if places:
        size = sum((out / name).stat().st_size for name in set(places.values()))
        index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=2))
    else:
        index.unlink(missing_ok=True)
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": recipe.config()}, indent=2))
    (out / "quantize_config.json").write_text(json.dumps(recipe.config(), indent=2))
