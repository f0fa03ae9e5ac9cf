"""AWQ (Lin et al., 2023): codes of 4 bits with a scale and a zero point for each group, in AutoAWQ's layout.

A word holds the codes of eight outputs in the order 0, 2, 4, 6, 1, 3, 5, 7; GPTQ's hold inputs in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from server.checkpoints.errors import ModelError
from server.checkpoints.files import StoredTensor, find_weights, read_headers, read_json
from server.quantization.formats.base import WeightFormat, declared_method
from server.quantization.formats.repacked import OpenRepacked, checkpoint_of
from server.quantization.gptq.config import GROUP_SIZES, GPTQConfig
from server.quantization.gptq.packing import pack_columns, pack_rows, unpack_columns

BITS = 4
PER_WORD = 32 // BITS
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Output of a word → where its code stands."""


@dataclass(frozen=True)
class OpenAWQ(OpenRepacked):
    """An AWQ checkpoint."""

    def repacked(self, layer: str, part: str) -> Tensor:
        stored = self.raw(f"{layer}.{part}")
        if part == "qweight":
            return pack_rows(unpacked(stored), BITS)
        return pack_columns(unpacked(stored), BITS) if part == "qzeros" else stored


def unpacked(words: Tensor) -> Tensor:
    """The codes of words in AutoAWQ's order: int32 [rows, columns / 8] → uint8 [rows, columns]."""
    codes = unpack_columns(words, BITS).view(words.shape[0], -1, PER_WORD)
    return codes[..., list(_PLACES)].reshape(words.shape[0], -1)


class AWQ(WeightFormat):
    """Checkpoints of AutoAWQ, version ``gemm``, and of llm-compressor's export to it."""

    name = "awq"
    needs_consent = False

    def detect(self, path: Path, config_fields: Mapping[str, Any]) -> bool:
        return declared_method(config_fields) == self.name

    def open(self, path: Path, options: Mapping[str, str]) -> OpenAWQ:
        config = _config(path / "config.json")
        entry = find_weights(path)
        stored = read_headers(entry)
        tensors = {name: _repacked_header(name, tensor) for name, tensor in stored.items()}
        checkpoint = checkpoint_of(path, entry, config, tensors, self.name)
        return OpenAWQ(path, entry, tensors, frozenset(checkpoint.layers), checkpoint, stored)


def _config(source: Path) -> GPTQConfig:
    """What ``quantization_config`` of ``config.json`` says, in GPTQ's terms."""
    fields = read_json(source).get("quantization_config")
    if not isinstance(fields, dict):
        raise ModelError(f"{source} has no quantization_config: it is not an AWQ checkpoint")
    found = {
        "version": str(fields.get("version", "gemm")).lower(),
        "bits": fields.get("bits", fields.get("w_bit")),
        "group_size": fields.get("group_size", fields.get("q_group_size")),
        "zero_point": fields.get("zero_point", True),
    }
    supported = {"version": ("gemm",), "bits": (BITS,), "group_size": GROUP_SIZES, "zero_point": (True,)}
    for key, accepted in supported.items():
        if found[key] not in accepted:
            raise ModelError(
                f"{source}: {key} of an AWQ checkpoint is {found[key]!r}, "
                f"supported: {', '.join(map(str, accepted))}"
            )
    return GPTQConfig(BITS, found["group_size"], desc_act=False, sym=None, zero_offset=0)


def _repacked_header(name: str, tensor: StoredTensor) -> StoredTensor:
    part = name.rpartition(".")[2]
    if part == "qweight" and len(tensor.shape) == 2 and tensor.shape[0] % PER_WORD == 0:
        shape = (tensor.shape[0] // PER_WORD, tensor.shape[1] * PER_WORD)
        return StoredTensor(tensor.file, tensor.dtype, shape)
    return tensor
