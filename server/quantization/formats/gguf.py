"""GGUF, llama.cpp's files: weights in blocks with scales of their own, configuration and tokenizer beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.checkpoints.files import StoredTensor
from server.checkpoints.gguf.header import SUFFIX, GGUFHeader, GGUFTensor
from server.quantization.formats.base import OpenFloats, OpenFormat, WeightFormat
from server.quantization.gguf.codes import FORMS
from server.quantization.gguf.linear import GGUFLinear
from server.quantization.gguf.names import Place, find_places, tensor_of
from server.quantization.gguf.read import KINDS, read_blocks, read_tensor
from server.quantization.linear import dequantized

_FLOATS = ("F32", "F16", "BF16")
_BLOCKS = tuple(kind for kind in KINDS if kind not in _FLOATS)


_FUSED = (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"))
"""Tensors of a layer that models multiply with as one."""
_ALONE = ("attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""Others, and what stands alone in families without gates."""
_STRIPE = 32
"""Outputs that kernels compute together, and of which the inputs are a multiple."""


@dataclass(frozen=True)
class OpenGGUF(OpenFloats):
    """A GGUF file.

    Attributes:
        places: where each of `tensors` lies; empty until the names of the model are known (`for_model`).
        why: its blocks become floats.
    """

    header: GGUFHeader
    places: Mapping[str, Place] = field(default_factory=dict)
    why: str = "no kernel of this project multiplies with these blocks"

    def for_model(self, known: Collection[str]) -> OpenFormat:
        places = find_places(self.header, known)
        stored = {name: StoredTensor(self.path, "F32", place.shape) for name, place in places.items()}
        return replace(self, tensors=stored, places=places)

    def for_blocks(self, objection: str | None) -> OpenFormat:
        if objection is not None:
            return replace(self, why=f"{self.why}: {objection}")
        return KeptGGUF(self.path, self.entry, {}, frozenset(), self.header, kept=_kept(self.header))

    def read(self, names: Iterable[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            yield name, read_tensor(self.places[name], dtype)

    def describe(self, dtype: torch.dtype) -> dict[str, str] | None:
        blocks = self._kinds(frozenset())
        if not blocks:
            kind = self._kinds(frozenset(), _BLOCKS)[0]
            name = str(dtype).removeprefix("torch.")
            return {"name": name, "reason": f"{kind} in the checkpoint (GGUF)"}
        return dequantized(f"{', '.join(blocks)} (GGUF)", dtype, self.why)

    def _kinds(self, but: Collection[str], without: Collection[str] = _FLOATS) -> list[str]:
        """Types of tensors, but for those that are named and types that are, the greatest part first."""
        sizes: Counter[str] = Counter()
        for name, tensor in self.header.tensors.items():
            if name not in but and tensor.kind not in without:
                sizes[tensor.kind] += prod(tensor.shape)
        return [kind for kind, _ in sizes.most_common()]

    def default_dtype(self, device: torch.device) -> torch.dtype:
        return torch.float32 if device.type == "cpu" else torch.bfloat16


@dataclass(frozen=True)
class KeptGGUF(OpenGGUF):
    """A GGUF file of which matrices of layers stay as they are.

    Attributes:
        kept: their names in the file.
    """

    kept: frozenset[str] = frozenset()

    def quantizes(self, names: Sequence[str]) -> bool:
        return all(self._keeps(f"{name}.weight") is not None for name in names)

    def _keeps(self, name: str) -> GGUFTensor | None:
        tensor = tensor_of(self.header, name)
        return tensor if tensor is not None and tensor.name in self.kept else None

    def for_model(self, known: Collection[str]) -> OpenFormat:
        opened = super().for_model(known)
        assert isinstance(opened, KeptGGUF)
        stored = dict(opened.tensors)
        for name, place in opened.places.items():
            if place.tensor.name in self.kept:
                width = place.tensor.size // place.shape[0]
                stored[name] = StoredTensor(self.path, "U8", (place.shape[0], width))
        layers = frozenset(name.removesuffix(".weight") for name in stored if stored[name].dtype == "U8")
        return replace(opened, tensors=stored, layers=layers)

    def read(self, names: Iterable[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            place = self.places[name]
            yield name, read_blocks(place) if place.tensor.name in self.kept else read_tensor(place, dtype)

    def linear(
        self,
        names: Sequence[str],
        inputs: int,
        outputs: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> GGUFLinear:
        tensors = [self._keeps(f"{name}.weight") for name in names]
        kinds = [tensor.kind for tensor in tensors if tensor is not None]
        biased = [tensor_of(self.header, f"{name}.bias") is not None for name in names]
        return GGUFLinear(kinds, inputs, outputs, biased, dtype=dtype, device=device)

    def head(self, names: Sequence[str], *, dtype: torch.dtype, device: torch.device) -> GGUFLinear | None:
        tensors = (tensor_of(self.header, f"{name}.weight") for name in names)
        tensor = next((tensor for tensor in tensors if tensor is not None), None)
        if tensor is None or not _fits(tensor):
            return None
        outputs, inputs = tensor.shape
        linear = GGUFLinear([tensor.kind], inputs, [outputs], [False], dtype=dtype, device=device)
        linear.blocks[0].copy_(read_blocks(Place(tensor, None, "none")))
        return linear

    def describe(self, dtype: torch.dtype) -> dict[str, str] | None:
        outer = ("token_embd.weight", "output.weight", "position_embd.weight")
        rest = self._kinds({*self.kept, *outer})
        if not self.kept:
            return super().describe(dtype)
        return dequantized(f"{', '.join(rest)} (GGUF)", dtype, self.why) if rest else None


def _kept(header: GGUFHeader) -> frozenset[str]:
    """Matrices of layers that kernels can multiply with as they are; those that are fused, all or none."""
    found: set[str] = set()
    for block in range(header.get("block_count")):
        names = [[f"blk.{block}.{part}.weight" for part in group] for group in _FUSED]
        groups = [group for group in names if all(name in header.tensors for name in group)]
        fused = {name for group in groups for name in group}
        alone = [f"blk.{block}.{part}.weight" for part in _ALONE]
        groups += [[name] for name in alone if name not in fused and name in header.tensors]
        for group in groups:
            tensors = [header.tensors[name] for name in group]
            alike = len({tensor.kind for tensor in tensors}) == 1
            # stripes of outputs are of one type; those of gate and up take turns
            apart = "ffn" not in group[0] and all(tensor.shape[0] % _STRIPE == 0 for tensor in tensors)
            if all(map(_fits, tensors)) and (alike or apart):
                found.update(group)
    return frozenset(found)


def _fits(tensor: GGUFTensor) -> bool:
    return tensor.kind in FORMS and len(tensor.shape) == 2 and tensor.shape[1] % _STRIPE == 0


class GGUF(WeightFormat):
    """Files of llama.cpp's converter and its quantizer."""

    name = "gguf"
    needs_consent = False

    def detect(self, path: Path, config_fields: Mapping[str, Any]) -> bool:
        return path.suffix == SUFFIX

    def open(self, path: Path, options: Mapping[str, str]) -> OpenGGUF:
        if path.suffix != SUFFIX:
            raise ModelError(f"quantization is 'gguf', but {path} is no *{SUFFIX} file")
        header = GGUFHeader.read(path)
        for tensor in header.tensors.values():
            if tensor.kind not in KINDS:
                raise ModelError(
                    f"{path}: {tensor.name} is of type {tensor.kind}, which is not supported "
                    f"(supported: {', '.join(KINDS)})"
                )
        return OpenGGUF(path, path, {}, frozenset(), header)
