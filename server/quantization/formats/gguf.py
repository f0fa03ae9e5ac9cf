"""GGUF, llama.cpp's files: weights in blocks with scales of their own, configuration and tokenizer beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.checkpoints.files import StoredTensor
from server.checkpoints.gguf.header import SUFFIX, GGUFHeader
from server.quantization.formats.base import OpenFloats, OpenFormat, WeightFormat, dequantized
from server.quantization.gguf.names import Place, find_places
from server.quantization.gguf.read import KINDS, read_tensor

_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class OpenGGUF(OpenFloats):
    """A GGUF file.

    Attributes:
        places: where each of `tensors` lies; empty until the names of the model are known (`for_model`).
    """

    header: GGUFHeader
    places: Mapping[str, Place] = field(default_factory=dict)

    def for_model(self, known: Collection[str]) -> OpenFormat:
        places = find_places(self.header, known)
        stored = {name: StoredTensor(self.path, "F32", place.shape) for name, place in places.items()}
        return replace(self, tensors=stored, places=places)

    def read(self, names: Iterable[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            yield name, read_tensor(self.places[name], dtype)

    def describe(self, dtype: torch.dtype) -> dict[str, str]:
        sizes: Counter[str] = Counter()
        for tensor in self.header.tensors.values():
            sizes[tensor.kind] += prod(tensor.shape)
        blocks = [kind for kind, _ in sizes.most_common() if kind not in _FLOATS]
        if not blocks:
            name = str(dtype).removeprefix("torch.")
            return {"name": name, "reason": f"{sizes.most_common(1)[0][0]} in the checkpoint (GGUF)"}
        stored = f"{', '.join(blocks)} (GGUF)"
        return dequantized(stored, dtype, "no kernel of this project multiplies with these blocks")

    def default_dtype(self, device: torch.device) -> torch.dtype:
        return torch.float32 if device.type == "cpu" else torch.bfloat16


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
