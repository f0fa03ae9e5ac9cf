"""Weights of 8 bits, FP8 or integers, with one scale for a matrix, for each output, or for each block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.checkpoints.files import StoredTensor
from server.checkpoints.tensors import read_tensors
from server.quantization.formats.base import OpenFloats, dequantized

STORED = {"F8_E4M3": "FP8", "F8_E5M2": "FP8 (E5M2)", "I8": "INT8"}
"""Types of weights, in safetensors' names → for people."""
_SCALES = ("weight_scale", "weight_scale_inv")
"""Both are what the stored number is multiplied by."""
_OF_ACTIVATIONS = ("input_scale", "activation_scale", "input_zero_point", "output_scale")
Block = tuple[int, int]
"""Outputs and inputs."""
_ROWS = 1024
"""Outputs that are dequantized at once."""


@dataclass(frozen=True)
class OpenScaled(OpenFloats):
    """A checkpoint with such weights.

    Attributes:
        stored: what its files hold.
        scales: name of a weight → of its scale.
        block: outputs and inputs that share a scale, where it is neither the matrix nor an output.
    """

    stored: Mapping[str, StoredTensor]
    scales: Mapping[str, str]
    block: Block | None

    def read(self, names: Iterable[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in read_tensors(self.stored, names):
            scale = self.scales.get(name)
            if scale is None:
                yield name, tensor
            else:
                ((_, factors),) = read_tensors(self.stored, [scale])
                yield name, multiply(tensor, factors, self.block, dtype)

    def describe(self, dtype: torch.dtype) -> dict[str, str]:
        kinds = sorted({STORED[self.stored[name].dtype] for name in self.scales})
        why = "this server multiplies floats of one type; activations are not quantized"
        return dequantized(", ".join(kinds), dtype, why)


def multiply(stored: Tensor, scales: Tensor, block: Block | None, dtype: torch.dtype) -> Tensor:
    """``stored · scale``: [outputs, inputs] of `dtype`; the only rounding is the last.

    Args:
        scales: one number, one for each output, or [n, m] for blocks, the last ones cut off.
    """
    outputs, inputs = stored.shape
    wide = scales.float().reshape(-1, 1) if scales.ndim < 2 else scales.float()
    height, width = _sizes((outputs, inputs), tuple(wide.shape), block)
    across = wide.repeat_interleave(width, 1)[:, :inputs] if wide.shape[1] > 1 else wide
    found = torch.empty(outputs, inputs, dtype=dtype)
    for start in range(0, outputs, _ROWS):
        rows = torch.arange(start, min(start + _ROWS, outputs))
        found[start : start + _ROWS] = stored[start : start + _ROWS].float() * across[rows // height]
    return found


def _sizes(matrix: tuple[int, ...], scales: tuple[int, ...], block: Block | None) -> Block:
    """Outputs and inputs that share a scale.

    Raises:
        ValueError: there are not as many scales as that takes.
    """
    if scales == (1, 1):
        return matrix[0], matrix[1]
    if scales == (matrix[0], 1) and block is None:
        return 1, matrix[1]
    if block is None:
        raise ValueError("the configuration does not say of which blocks")
    if scales != (-(-matrix[0] // block[0]), -(-matrix[1] // block[1])):
        raise ValueError(f"blocks are {block[0]} by {block[1]}")
    return block


def open_scaled(
    path: Path, entry: Path, stored: Mapping[str, StoredTensor], block: Any, source: Path
) -> OpenScaled:
    """The checkpoint in directory `path` whose files hold `stored`.

    Args:
        block: outputs and inputs that share a scale, as the configuration has it.
        source: of the configuration.

    Raises:
        ModelError: weights without scales, scales without weights, or shapes that do not fit.
    """
    known = _checked_block(block, source)
    scales: dict[str, str] = {}
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        layer, _, part = name.rpartition(".")
        if part in _SCALES and f"{layer}.weight" in stored:
            scales[f"{layer}.weight"] = name
        elif part not in _OF_ACTIVATIONS and part != "weight_zero_point":
            tensors[name] = tensor
        elif part == "weight_zero_point":
            raise ModelError(f"{tensor.file}: {name}: weights of 8 bits with zero points are not supported")
    for name, scale in scales.items():
        tensors[name] = _checked(name, stored[name], scale, stored[scale], known)
    if not scales:
        raise ModelError(f"{path}: no tensor is quantized, though its configuration says so")
    return OpenScaled(path, entry, tensors, frozenset(), stored, scales, known)


def _checked_block(block: Any, source: Path) -> Block | None:
    if block is None:
        return None
    if not (isinstance(block, list) and [type(size) for size in block] == [int, int] and min(block) > 0):
        raise ModelError(f"{source}: blocks of {block!r} are not two sizes")
    return block[0], block[1]


def _checked(
    name: str, weight: StoredTensor, scale: str, factors: StoredTensor, block: Block | None
) -> StoredTensor:
    """What the weight is once it is dequantized."""
    if weight.dtype not in STORED:
        raise ModelError(
            f"{weight.file}: {name} is of type {weight.dtype}, but has a scale "
            f"(supported: {', '.join(STORED)})"
        )
    shape = factors.shape if len(factors.shape) == 2 else (max(factors.shape, default=1), 1)
    try:
        if len(weight.shape) != 2 or len(factors.shape) > 2:
            raise ValueError("expected matrices")
        _sizes(weight.shape, shape, block)
    except ValueError as error:
        raise ModelError(
            f"{factors.file}: {scale} has shape {list(factors.shape)}, which does not fit "
            f"{name} of shape {list(weight.shape)}: {error}"
        ) from error
    return StoredTensor(weight.file, "F32", weight.shape)
