"""Which tensor of a GGUF file holds which tensor of a model, and how it was changed on its way there."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from gguf import MODEL_ARCH_NAMES, TensorNameMap, get_tensor_name_map

from server.checkpoints.gguf.header import GGUFHeader, GGUFTensor

Change = Literal["none", "plus one", "halves interleaved"]
"""What llama.cpp's converter does: store a norm's weight plus one, or interleave the two halves of the
outputs of each head, because it rotates neighbours where transformers rotates halves."""

_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_PARTS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}
"""Part of an expert in the file → in a checkpoint."""
_DERIVED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that the configuration was read from."""
_INTERLEAVED = ("llama",)
_NORMS_PLUS_ONE = ("gemma2", "gemma3")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of a model lies.

    Attributes:
        expert: its index in a tensor that holds those of all experts; None: the tensor is its own.
        heads: those of a projection that is interleaved; 0: it is none.
    """

    tensor: GGUFTensor
    expert: int | None
    change: Change
    heads: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape if self.expert is None else self.tensor.shape[1:]


def find_places(header: GGUFHeader, known: Collection[str]) -> dict[str, Place]:
    """Where the tensors of a model are; what it does not know keeps the name it has in the file.

    Args:
        known: transformers' names of the model's tensors.
    """
    names = _names(header.architecture, header.get("block_count"))
    found: dict[str, Place] = {}
    for own in [*known, *_experts(header)]:
        expert = _EXPERT.search(own)
        stem, dot, suffix = _EXPERT.sub(".experts.", own).rpartition(".")
        name = f"{names.get_name(stem)}{dot}{suffix}"
        if name in header.tensors:
            found[own] = _place(header, header.tensors[name], None if expert is None else int(expert[1]))
    used = {place.tensor.name for place in found.values()}
    for name in header.tensors.keys() - used - {*_DERIVED}:
        found[name] = Place(header.tensors[name], None, "none")
    return found


@cache
def _names(architecture: str, blocks: int) -> TensorNameMap:
    enum = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    return get_tensor_name_map(enum, blocks)


def tensor_of(header: GGUFHeader, name: str) -> GGUFTensor | None:
    """The tensor of the file that is the model's tensor `name`; None: it has none."""
    stem, dot, suffix = name.rpartition(".")
    known = _names(header.architecture, header.get("block_count")).get_name(stem)
    return header.tensors.get(f"{known}{dot}{suffix}")


def _experts(header: GGUFHeader) -> Iterator[str]:
    """transformers' names of the tensors of single experts: checkpoints have these, models may fuse them."""
    mixtral = header.architecture == "llama"
    parts, block = (_MIXTRAL, "block_sparse_moe") if mixtral else (_PARTS, "mlp")
    for layer in range(header.get("block_count")):
        for part, name in parts.items():
            tensor = header.tensors.get(f"blk.{layer}.ffn_{part}_exps.weight")
            for expert in range(0 if tensor is None else tensor.shape[0]):
                yield f"model.layers.{layer}.{block}.experts.{expert}.{name}.weight"


def _place(header: GGUFHeader, tensor: GGUFTensor, expert: int | None) -> Place:
    if header.architecture in _NORMS_PLUS_ONE and tensor.name.endswith("norm.weight"):
        return Place(tensor, expert, "plus one")
    if header.architecture in _INTERLEAVED:
        heads = header.get("attention.head_count")
        if ".attn_q." in tensor.name:
            return Place(tensor, expert, "halves interleaved", heads)
        if ".attn_k." in tensor.name:
            return Place(tensor, expert, "halves interleaved", header.get("attention.head_count_kv", heads))
    return Place(tensor, expert, "none")
