"""MXFP4 (OCP Microscaling Formats, 2023): numbers of 4 bits, 32 of which share a power of two; gpt-oss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.checkpoints.files import StoredTensor, find_weights, read_headers
from server.checkpoints.tensors import read_tensors
from server.layers.microscaled import BLOCK, Microscaled, dequantize
from server.quantization.formats.base import (
    OpenFloats,
    OpenFormat,
    WeightFormat,
    declared_method,
)
from server.quantization.linear import dequantized

BLOCKS, SCALES = "_blocks", "_scales"


@dataclass(frozen=True)
class KeptMXFP4(OpenFloats):
    """A checkpoint whose experts stay in MXFP4."""

    def stack(
        self,
        names: Sequence[str],
        shape: tuple[int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Microscaled | None:
        if names[0] + BLOCKS not in self.tensors or shape[2] % BLOCK:
            return None
        return Microscaled(*shape, dtype=dtype, device=device)


@dataclass(frozen=True)
class OpenMXFP4(OpenFloats):
    """A checkpoint with such weights of experts: each ``NAME_blocks`` is read as ``NAME``."""

    stored: Mapping[str, StoredTensor]
    why: str = "no kernel of this project multiplies with it"

    def for_experts(self, objection: str | None) -> OpenFormat:
        if objection is not None:
            return replace(self, why=objection)
        return KeptMXFP4(self.path, self.entry, self.stored, frozenset())

    def read(self, names: Iterable[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            if name in self.stored:
                yield from read_tensors(self.stored, [name])
                continue
            found = dict(read_tensors(self.stored, [name + BLOCKS, name + SCALES]))
            weights = torch.stack(
                [
                    dequantize(blocks, scales, dtype)
                    for blocks, scales in zip(found[name + BLOCKS], found[name + SCALES], strict=True)
                ]
            )
            yield name, weights.transpose(1, 2)

    def describe(self, dtype: torch.dtype) -> dict[str, str]:
        return dequantized("MXFP4", dtype, self.why)


class MXFP4(WeightFormat):
    """gpt-oss, as OpenAI publishes it."""

    name = "mxfp4"
    needs_consent = False

    def detect(self, path: Path, config_fields: Mapping[str, Any]) -> bool:
        return declared_method(config_fields) == self.name

    def open(self, path: Path, options: Mapping[str, str]) -> OpenMXFP4:
        entry = find_weights(path)
        stored = read_headers(entry)
        tensors: dict[str, StoredTensor] = {}
        for name, tensor in stored.items():
            if name.endswith(BLOCKS):
                own = name.removesuffix(BLOCKS)
                tensors[own] = _checked(name, tensor, stored.get(own + SCALES))
            elif not (name.endswith(SCALES) and name.removesuffix(SCALES) + BLOCKS in stored):
                tensors[name] = tensor
        if not any(name.endswith(BLOCKS) for name in stored):
            raise ModelError(f"{entry} holds no *{BLOCKS}, though its configuration says {self.name}")
        return OpenMXFP4(path, entry, tensors, frozenset(), stored)


def _checked(name: str, blocks: StoredTensor, scales: StoredTensor | None) -> StoredTensor:
    """What the weight is once it is dequantized: [experts, inputs, outputs]."""
    if scales is None:
        raise ModelError(f"{blocks.file} holds {name}, but no {name.removesuffix(BLOCKS)}{SCALES}")
    shape = blocks.shape
    if len(shape) != 4 or shape[3] != BLOCK // 2 or scales.shape != shape[:3]:
        raise ModelError(
            f"{blocks.file}: {name} has shape {list(shape)} and its scales {list(scales.shape)}, "
            f"expected [experts, outputs, n, {BLOCK // 2}] and [experts, outputs, n]"
        )
    if (blocks.dtype, scales.dtype) != ("U8", "U8"):
        raise ModelError(
            f"{blocks.file}: {name} and its scales are {blocks.dtype} and {scales.dtype}, not U8"
        )
    return StoredTensor(blocks.file, "F32", (shape[0], shape[2] * BLOCK, shape[1]))
