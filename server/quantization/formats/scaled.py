"""Weights of 8 bits, FP8 or integers, with one scale for a matrix, for each output, or for each block.

They become floats when they are read, but for FP8 where a device multiplies it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.checkpoints.cache_scales import is_cache_scale
from server.checkpoints.errors import ModelError
from server.checkpoints.files import StoredTensor
from server.checkpoints.tensors import read_tensors
from server.quantization.formats.base import OpenFloats
from server.quantization.fp8.scheme import BLOCK, MULTIPLE, Activations
from server.quantization.fp8.stack import ScaledStack
from server.quantization.linear import QuantizedLinear, dequantized
from server.quantization.scales import Block, multiply, shared

STORED = {"F8_E4M3": "FP8", "F8_E5M2": "FP8 (E5M2)", "I8": "INT8"}
"""Types of weights, in safetensors' names → for people."""
TORCH_TYPES = {"F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8}
"""Types of weights that are kept for experts."""
_SCALES = ("weight_scale", "weight_scale_inv")
"""Both are what the stored number is multiplied by."""
_OF_ACTIVATIONS = ("input_scale", "activation_scale", "input_zero_point", "output_scale")
_EXPERT = ".experts."
"""In the name of a matrix of an expert."""


@dataclass(frozen=True)
class OpenScaled(OpenFloats):
    """A checkpoint with such weights.

    Attributes:
        stored: what its files hold.
        scales: name of a weight → of its scale.
        block: outputs and inputs that share a scale, where it is neither the matrix nor an output.
        activations: how they are quantized; None: they are not.
        why: weights become floats.
        no_float8: why the device has nothing to do with FP8; None: it has.
    """

    stored: Mapping[str, StoredTensor]
    scales: Mapping[str, str]
    block: Block | None
    activations: Activations | None
    why: str = "this server multiplies floats of one type, so that activations are not quantized"
    no_float8: str | None = None

    def quantizes(self, names: Sequence[str]) -> bool:
        return self.layers.issuperset(names)  # others of a joint layer become floats with those that are

    def for_float8(self, objection: str | None) -> OpenScaled:
        layers = [name for name in self.scales if _EXPERT not in name]
        reason = objection or self._objection(layers)
        known = replace(self, no_float8=objection)
        return replace(known, why=reason) if reason is not None else known._keeping(map(_layer, layers))

    def for_experts(self, objection: str | None) -> OpenScaled:
        """Their activations stay floats, whatever the checkpoint does with those of other layers."""
        experts = [name for name in self.scales if _EXPERT in name]
        if not experts:
            return self
        reason = objection or self._objection_to_experts(experts)
        if reason is not None:
            return replace(self, why=reason) if self.layers else self
        return self._keeping(self.layers.union(map(_layer, experts)))

    def for_model(self, known: Collection[str]) -> OpenScaled:
        return self._keeping(layer for layer in self.layers if f"{layer}.weight_scale" in known)

    def _keeping(self, layers: Iterable[str]) -> OpenScaled:
        """The same with FP8 in `layers` alone; their scales are read as float32, by output or by block."""
        kept = frozenset(layers)
        tensors = {name: tensor for name, tensor in self.tensors.items() if name not in self._parts()}
        for name in self.scales:
            layer, weight = _layer(name), self.stored[name]
            if layer not in kept:
                tensors[name] = replace(weight, dtype="F32")
                continue
            shape = (weight.shape[0], 1)
            if self.block is not None:
                shape = (weight.shape[0] // BLOCK, weight.shape[1] // BLOCK)
            tensors |= {name: weight, f"{layer}.weight_scale": StoredTensor(weight.file, "F32", shape)}
            if self.activations is not None and self.activations.static and _EXPERT not in name:
                tensors[f"{layer}.input_scale"] = StoredTensor(weight.file, "F32", (1,))
        return replace(self, layers=kept, tensors=tensors)

    def _parts(self) -> set[str]:
        """Names of the scales in `tensors`."""
        return {f"{layer}.{part}" for layer in self.layers for part in ("weight_scale", "input_scale")}

    def _objection(self, names: Iterable[str]) -> str | None:
        """Why FP8 units do not multiply the weights `names`, whatever the device; None: they do."""
        names = list(names)
        for name in names:
            if (stored := self.stored[name].dtype) != "F8_E4M3":
                return f"products of 8 bits take FP8 (E4M3), not {STORED[stored]}"
        if self.activations is None:
            return "the checkpoint has activations that are floats"
        if (reason := self._objection_to_sizes(names, MULTIPLE)) is not None:
            return reason
        for name in names:
            if self.activations.static and f"{_layer(name)}.input_scale" not in self.stored:
                return f"there is no input_scale of {name}"
        return None

    def _objection_to_experts(self, names: Sequence[str]) -> str | None:
        """Why no kernel makes floats of the experts' weights `names` in tiles; None: one does."""
        kinds = {self.stored[name].dtype for name in names}
        if kinds == {"F8_E4M3"} and self.no_float8 is not None:
            return self.no_float8
        if kinds not in ({"F8_E4M3"}, {"I8"}):
            return f"products of experts do not take {', '.join(sorted(STORED[kind] for kind in kinds))}"
        return self._objection_to_sizes(names, 1)

    def _objection_to_sizes(self, names: Iterable[str], multiple: int) -> str | None:
        if self.block not in (None, (BLOCK, BLOCK)):
            return f"products of FP8 take blocks of {BLOCK} by {BLOCK}"
        multiple = multiple if self.block is None else BLOCK
        for name in names:
            shape = self.stored[name].shape
            if shape[0] % multiple or shape[1] % multiple:
                return f"products of FP8 take multiples of {multiple}, not {name} of shape {list(shape)}"
        return None

    def stack(
        self,
        names: Sequence[str],
        shape: tuple[int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> ScaledStack | None:
        if not self.quantizes(names):
            return None
        kind = TORCH_TYPES[self.stored[f"{names[0]}.weight"].dtype]
        block = None if self.block is None else BLOCK
        parts = len(names) // shape[0]
        return ScaledStack(shape, parts, stored=kind, block=block, dtype=dtype, device=device)

    def linear(
        self,
        names: Sequence[str],
        inputs: int,
        outputs: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> QuantizedLinear:
        from server.quantization.fp8.linear import BlockScaledLinear, Float8Linear  # needs Triton

        assert self.activations is not None
        biases = [f"{name}.bias" in self.tensors for name in names]
        if any(biases) != all(biases):
            raise ModelError(f"{self.path}: only some of {', '.join(names)} have a bias, not supported")
        kind = Float8Linear if self.block is None else BlockScaledLinear
        return kind(
            inputs, outputs, bias=any(biases), activations=self.activations, dtype=dtype, device=device
        )

    def read(self, names: Iterable[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        own = {self._stored_name(name): name for name in names}
        for stored, tensor in read_tensors(self.stored, own):
            yield own[stored], self._made(own[stored], tensor, dtype)

    def _stored_name(self, name: str) -> str:
        layer, _, part = name.rpartition(".")
        return self.scales[f"{layer}.weight"] if part == "weight_scale" and layer in self.layers else name

    def _made(self, name: str, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """What is read as `name`, from what its file holds."""
        layer, _, part = name.rpartition(".")
        if layer in self.layers:
            if part == "weight_scale":
                return _by_output(stored, self.tensors[name].shape)
            return stored.reshape(1) if part == "input_scale" else stored
        if name not in self.scales:
            return stored
        ((_, factors),) = read_tensors(self.stored, [self.scales[name]])
        return multiply(stored, factors, self.block, dtype)

    def describe(self, dtype: torch.dtype) -> dict[str, str] | None:
        floats = [name for name in self.scales if _layer(name) not in self.layers]
        if not floats:
            return None
        kinds = sorted({STORED[self.stored[name].dtype] for name in floats})
        return dequantized(", ".join(kinds), dtype, self.why)


def _layer(weight: str) -> str:
    """Whose weight `weight` is."""
    return weight.rpartition(".")[0]


def _by_output(scales: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Scales of outputs, which have one together or one each, or of blocks, as they are."""
    return scales.float() if shape[1] > 1 else scales.float().reshape(-1, 1).expand(shape)


def open_scaled(
    path: Path,
    entry: Path,
    stored: Mapping[str, StoredTensor],
    source: Path,
    *,
    block: Any,
    activations: Activations | None,
) -> OpenScaled:
    """The checkpoint in directory `path` whose files hold `stored`.

    Args:
        source: of the configuration.
        block: outputs and inputs that share a scale, as the configuration has it.
        activations: how they are quantized; None: they are not.

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
        elif part not in _OF_ACTIVATIONS and part != "weight_zero_point" and not is_cache_scale(name):
            tensors[name] = tensor
        elif part == "weight_zero_point":
            raise ModelError(f"{tensor.file}: {name}: weights of 8 bits with zero points are not supported")
    for name, scale in scales.items():
        tensors[name] = _checked(name, stored[name], scale, stored[scale], known)
    if not scales:
        raise ModelError(f"{path}: no tensor is quantized, though its configuration says so")
    return OpenScaled(path, entry, tensors, frozenset(), stored, scales, known, activations)


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
        shared(weight.shape, shape, block)
    except ValueError as error:
        raise ModelError(
            f"{factors.file}: {scale} has shape {list(factors.shape)}, which does not fit "
            f"{name} of shape {list(weight.shape)}: {error}"
        ) from error
    return StoredTensor(weight.file, "F32", weight.shape)
