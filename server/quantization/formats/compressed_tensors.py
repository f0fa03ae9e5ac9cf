"""compressed-tensors, the format of llm-compressor: codes of 4 or 8 bits in words, or weights of 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.checkpoints.cache_scales import is_cache_scale
from server.checkpoints.errors import ModelError
from server.checkpoints.files import StoredTensor, find_weights, read_headers, read_json
from server.quantization.formats.base import OpenFormat, WeightFormat, declared_method
from server.quantization.formats.repacked import OpenRepacked, checkpoint_of
from server.quantization.formats.scaled import open_scaled
from server.quantization.fp8.scheme import BLOCK, Activations
from server.quantization.gptq.config import BITS, GROUP_SIZES, PACKED_BITS, GPTQConfig
from server.quantization.gptq.packing import pack_columns, unpack_rows

PACKED = "pack-quantized"
SCALED = ("float-quantized", "int-quantized", "naive-quantized")
_PARTS = {
    "weight_packed": "qweight",
    "weight_scale": "scales",
    "weight_zero_point": "qzeros",
    "weight_g_idx": "g_idx",
}
"""What it is called there → in GPTQ."""
_SHAPE = "weight_shape"


@dataclass(frozen=True)
class OpenPacked(OpenRepacked):
    """Codes in words: a word holds inputs in order, as GPTQ's, but the matrix is transposed."""

    def repacked(self, layer: str, part: str) -> Tensor:
        bits = self.checkpoint.config.bits
        if part == "qzeros" and f"{layer}.weight_zero_point" not in self.stored:
            groups, words = self.tensors[f"{layer}.qzeros"].shape
            middle = torch.full((groups, words * (PACKED_BITS // bits)), 1 << (bits - 1), dtype=torch.uint8)
            return pack_columns(middle, bits)
        name = next(theirs for theirs, ours in _PARTS.items() if ours == part)
        stored = self.raw(f"{layer}.{name}")
        if part == "g_idx":
            return stored
        if part == "qzeros":  # codes of outputs in words along the outputs
            return pack_columns(unpack_rows(stored, bits).t(), bits)
        return stored.t().contiguous()


class CompressedTensors(WeightFormat):
    """Checkpoints of llm-compressor whose layers are all quantized alike."""

    name = "compressed-tensors"
    needs_consent = False

    def detect(self, path: Path, config_fields: Mapping[str, Any]) -> bool:
        return declared_method(config_fields) == self.name

    def open(self, path: Path, options: Mapping[str, str]) -> OpenFormat:
        source = path / "config.json"
        fields = read_json(source).get("quantization_config")
        if not isinstance(fields, dict):
            raise ModelError(f"{source} has no quantization_config: it is not in format {self.name}")
        kind, weights, inputs = _scheme(fields, source)
        entry = find_weights(path)
        stored = read_headers(entry)
        if kind in SCALED:
            block = weights.get("block_structure")
            activations = _activations(inputs, weights.get("strategy"))
            return open_scaled(path, entry, stored, source, block=block, activations=activations)
        return _open_packed(path, entry, stored, _packed_config(weights, source))


Scheme = Mapping[str, Any]
"""How compressed-tensors says that something was quantized."""


def _scheme(fields: Mapping[str, Any], source: Path) -> tuple[str, Scheme, Scheme | None]:
    """(how weights are stored, how they were quantized, how activations are; None: they are not).

    Raises:
        ModelError: a variant that is not supported.
    """
    cache = fields.get("kv_cache_scheme") or {"num_bits": 8, "type": "float"}
    if (cache.get("num_bits"), cache.get("type", "int")) != (8, "float"):
        raise ModelError(f"{source}: kv_cache_scheme of {CompressedTensors.name} is not FP8: {cache}")
    for key in ("sparsity_config", "transform_config"):
        value = fields.get(key)
        if value and value != {"format": "dense"}:
            raise ModelError(f"{source}: {key} of {CompressedTensors.name} is not supported")
    groups = [group for group in (fields.get("config_groups") or {}).values() if isinstance(group, dict)]
    schemes = [(group.get("weights"), group.get("input_activations")) for group in groups]
    kinds = {group.get("format") or fields.get("format") for group in groups}
    if not groups or len(kinds) != 1 or any(scheme != schemes[0] for scheme in schemes):
        raise ModelError(f"{source}: config_groups that store weights differently are not supported")
    kind = kinds.pop()
    if kind not in (PACKED, *SCALED):
        raise ModelError(
            f"{source}: format {kind!r} of {CompressedTensors.name} is not supported "
            f"(supported: {', '.join((PACKED, *SCALED))})"
        )
    weights, inputs = schemes[0]
    return str(kind), weights or {}, inputs


def _activations(scheme: Scheme | None, weights: str | None) -> Activations | None:
    """How rows are quantized for FP8 units; None: they are not, or in another way.

    Args:
        weights: what of them shares a scale.
    """
    if scheme is None or (scheme.get("num_bits"), scheme.get("type")) != (8, "float"):
        return None
    strategy = scheme.get("strategy")
    if not scheme.get("dynamic"):
        return Activations(static=True) if strategy == "tensor" and weights != "block" else None
    if strategy == "group":
        return Activations() if weights == "block" and scheme.get("group_size") == BLOCK else None
    # a scale for each row is at least as fine as one for all
    return Activations() if strategy in ("token", "tensor") and weights != "block" else None


def _packed_config(weights: Scheme, source: Path) -> GPTQConfig:
    """The scheme in GPTQ's terms."""
    strategy, size = weights.get("strategy"), weights.get("group_size")
    found = {
        "num_bits": (weights.get("num_bits"), BITS),
        "type": (weights.get("type", "int"), ("int",)),
        "strategy": (strategy, ("group", "channel")),
        "group_size": (-1 if strategy == "channel" else size, GROUP_SIZES),
    }
    for key, (value, accepted) in found.items():
        if value not in accepted:
            raise ModelError(
                f"{source}: {key} of packed weights is {value!r}, supported: {', '.join(map(str, accepted))}"
            )
    return GPTQConfig(
        bits=weights["num_bits"],
        group_size=found["group_size"][0],
        desc_act=weights.get("actorder") in ("group", "dynamic"),
        sym=bool(weights.get("symmetric", True)),
        zero_offset=0,
    )


def _open_packed(
    path: Path, entry: Path, stored: Mapping[str, StoredTensor], config: GPTQConfig
) -> OpenFormat:
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        layer, _, part = name.rpartition(".")
        if part == "weight_packed":
            outputs, words = tensor.shape
            tensors[f"{layer}.qweight"] = StoredTensor(tensor.file, tensor.dtype, (words, outputs))
            zeros = (config.groups(words * config.codes_per_word), outputs // config.codes_per_word)
            tensors[f"{layer}.qzeros"] = StoredTensor(tensor.file, "I32", zeros)
        elif part == "weight_zero_point" and f"{layer}.weight_packed" in stored:
            if config.sym:
                raise ModelError(f"{tensor.file} holds {name}, but symmetric is true")
        elif part in _PARTS:
            shape = tensor.shape if part == "weight_g_idx" else tensor.shape[::-1]
            tensors[f"{layer}.{_PARTS[part]}"] = StoredTensor(tensor.file, tensor.dtype, shape)
        elif part != _SHAPE and not is_cache_scale(name):
            tensors[name] = tensor
    checkpoint = checkpoint_of(path, entry, config, tensors, CompressedTensors.name)
    if not config.sym:
        _check_zero_points(checkpoint.layers, stored)
    return OpenPacked(path, entry, tensors, frozenset(checkpoint.layers), checkpoint, stored)


def _check_zero_points(layers: list[str], stored: Mapping[str, StoredTensor]) -> None:
    for layer in layers:
        if f"{layer}.weight_zero_point" not in stored:
            file = stored[f"{layer}.weight_packed"].file
            raise ModelError(f"{file} holds {layer}.weight_packed, but no {layer}.weight_zero_point")
