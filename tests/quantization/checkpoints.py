"""GPTQ tensors and checkpoints for tests, and the published formula in numpy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from server.quantization.gptq.checkpoint import GPTQCheckpoint
from server.quantization.gptq.linear import GPTQLinear


@dataclass(frozen=True, slots=True)
class Form:
    """How a layer is quantized."""

    bits: int = 4
    group_size: int = 32
    desc_act: bool = False
    sym: bool = True
    version: int = 1

    def config(self) -> dict[str, Any]:
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "desc_act": self.desc_act,
            "sym": self.sym,
            "quant_method": "gptq",
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
        }


FORMS = [
    Form(bits, group_size, desc_act, sym, version)
    for bits in (4, 8)
    for group_size in (32, 64, 128, -1)
    for desc_act in (False, True)
    for sym in (True, False)
    for version in (1, 2)
]


def random_layer(form: Form, inputs: int, outputs: int, seed: int = 0) -> dict[str, Tensor]:
    """Random words in the tensors of one layer, as a checkpoint holds them."""
    rng = np.random.default_rng(seed)
    per_word, group_size = 32 // form.bits, inputs if form.group_size == -1 else form.group_size
    groups = inputs // group_size
    words = rng.integers(-(2**31), 2**31, (inputs // per_word, outputs), dtype=np.int64)
    if form.sym:  # the middle, stored less one by version 1
        middle = (1 << (form.bits - 1)) - (form.version == 1)
        zeros = np.full((groups, outputs), middle, dtype=np.int64)
    else:  # version 1 cannot hold 0
        zeros = rng.integers(form.version == 1, 1 << form.bits, (groups, outputs)) - (form.version == 1)
    packed = sum(zeros[:, i::per_word] << (form.bits * i) for i in range(per_word))
    g_idx = np.arange(inputs) // group_size
    return {
        "qweight": torch.from_numpy(words.astype(np.int32)),
        "qzeros": torch.from_numpy(np.asarray(packed).astype(np.uint32).view(np.int32)),
        "scales": torch.from_numpy(rng.uniform(0.002, 0.02, (groups, outputs)).astype(np.float16)),
        "g_idx": torch.from_numpy((rng.permutation(g_idx) if form.desc_act else g_idx).astype(np.int32)),
    }


def published_formula(form: Form, layer: dict[str, Tensor]) -> np.ndarray:
    """float64 [outputs, inputs]: ``scale · (code − zero)``, code by code."""
    codes = _codes(layer["qweight"].numpy(), form.bits, axis=0)
    zeros = _codes(layer["qzeros"].numpy(), form.bits, axis=1) + (form.version == 1)
    scales = layer["scales"].numpy().astype(np.float64)
    group = layer["g_idx"].numpy()
    return (scales[group] * (codes - zeros[group])).T


def _codes(words: np.ndarray, bits: int, axis: int) -> np.ndarray:
    per_word = 32 // bits
    size = words.shape[axis] * per_word
    place = np.arange(size)
    wide = np.take(words.view(np.uint32).astype(np.int64), place // per_word, axis)
    shape = [-1, 1] if axis == 0 else [1, -1]
    return (wide >> (bits * (place % per_word)).reshape(shape)) & ((1 << bits) - 1)


def save_layers(
    path: Path, form: Form, layers: dict[str, dict[str, Tensor]], **others: Tensor
) -> GPTQCheckpoint:
    """A checkpoint directory of nothing but `layers`."""
    tensors = {f"{name}.{part}": tensor for name, layer in layers.items() for part, tensor in layer.items()}
    save_file({k: v.contiguous() for k, v in (tensors | others).items()}, path / "model.safetensors")
    (path / "quantize_config.json").write_text(json.dumps(form.config()))
    return GPTQCheckpoint.open(path)


def filled_linear(
    checkpoint: GPTQCheckpoint, names: list[str], *, dtype: torch.dtype = torch.float32
) -> GPTQLinear:
    """The layer of projections `names`, its tensors loaded and not packed yet."""
    tensors: dict[str, Tensor] = {}
    for file in checkpoint.files:
        tensors |= load_file(file)
    words = [tensors[f"{name}.qweight"] for name in names]
    inputs = words[0].shape[0] * checkpoint.config.codes_per_word
    outputs = [word.shape[1] for word in words]
    layer = GPTQLinear(checkpoint, names, inputs, outputs, dtype=dtype, device=torch.device("cpu"))
    for name, target in layer.weights(*names).items():
        assert target.shape == tensors[name].shape
        target.copy_(tensors[name])
    return layer
