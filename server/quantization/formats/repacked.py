"""Checkpoints of other formats whose codes are GPTQ's in another layout.

They are repacked when they are read, so that its layers and kernels serve them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.checkpoints.files import StoredTensor
from server.checkpoints.tensors import read_tensors
from server.quantization.formats.gptq import OpenGPTQ
from server.quantization.gptq.checkpoint import GPTQCheckpoint, scales_dtype
from server.quantization.gptq.checks import check_headers
from server.quantization.gptq.config import GPTQConfig


@dataclass(frozen=True)
class OpenRepacked(OpenGPTQ):
    """A checkpoint whose `tensors` are what `repacked` makes of the `stored` ones."""

    stored: Mapping[str, StoredTensor]

    @abstractmethod
    def repacked(self, layer: str, part: str) -> Tensor:
        """The tensor `part` (qweight, qzeros, scales or g_idx) of `layer` as GPTQ stores it."""

    def read(self, names: Iterable[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            layer, _, part = name.rpartition(".")
            if layer in self.layers and part != "bias":
                yield name, self.repacked(layer, part)
            else:
                yield from read_tensors(self.stored, [name])

    def raw(self, name: str) -> Tensor:
        """The tensor `name` as it is stored."""
        ((_, tensor),) = read_tensors(self.stored, [name])
        return tensor


def checkpoint_of(
    path: Path, entry: Path, config: GPTQConfig, tensors: Mapping[str, StoredTensor], format_name: str
) -> GPTQCheckpoint:
    """What the repacked tensors are to layers and kernels.

    Args:
        tensors: with names, shapes and types after repacking.

    Raises:
        ModelError: they contradict each other, or nothing is quantized.
    """
    checkpoint = GPTQCheckpoint(path, config, entry, tensors, scales_dtype(tensors))
    if not checkpoint.layers:
        raise ModelError(f"{path}: no tensor is quantized, though its configuration says {format_name}")
    if "lm_head" in checkpoint.layers:
        raise ModelError(f"{path}: a quantized lm_head is not supported")
    for layer in checkpoint.layers:
        check_headers(config, layer, tensors)
    return checkpoint
