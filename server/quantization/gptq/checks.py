"""Refuses GPTQ checkpoints that contradict themselves: each reading of one would be a guess."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.checkpoints.files import StoredTensor
from server.quantization.gptq.config import GPTQConfig
from server.quantization.gptq.packing import shift_zeros, unpack_columns

_DECLARED = ("bits", "group_size", "desc_act", "sym", "checkpoint_format")


def check_same_config(one: Mapping[str, Any], source: Path, other: Mapping[str, Any], place: Path) -> None:
    """Compare a `quantize_config.json` with the `quantization_config` of ``config.json``.

    Raises:
        ModelError: both have a field, with different values.
    """
    for key in _DECLARED:
        if key in one and key in other and one[key] != other[key]:
            raise ModelError(
                f"{source}: {key} is {one[key]!r}, but quantization_config in {place} says {other[key]!r}"
            )


def check_headers(config: GPTQConfig, layer: str, stored: Mapping[str, StoredTensor]) -> None:
    """Compare shapes and types of the tensors of `layer` with `config`.

    Raises:
        ModelError: a tensor is missing, or cannot be what `config` says.
    """
    codes = stored[f"{layer}.qweight"]
    if f"{layer}.weight" in stored:
        raise ModelError(f"{codes.file} holds {layer}.qweight, but {layer}.weight is stored, too")
    if len(codes.shape) != 2:
        raise ModelError(f"{codes.file}: {layer}.qweight has shape {list(codes.shape)}, expected two sizes")
    inputs, outputs = codes.shape[0] * config.codes_per_word, codes.shape[1]
    groups = config.groups(inputs)
    expected: dict[str, tuple[int, ...]] = {
        "qweight": codes.shape,
        "qzeros": (groups, outputs // config.codes_per_word),
        "scales": (groups, outputs),
        "g_idx": (inputs,),
    }
    for part, shape in expected.items():
        name = f"{layer}.{part}"
        tensor = stored.get(name)
        if tensor is None:
            _check_left_out(config, layer, part, codes.file)
        elif tensor.shape != shape:
            raise ModelError(
                f"{tensor.file}: {name} has shape {list(tensor.shape)}, but bits {config.bits} and "
                f"group_size {config.group_size} make {list(shape)} of a qweight of {list(codes.shape)}"
            )
        elif part != "scales" and tensor.dtype != "I32":
            raise ModelError(f"{tensor.file}: {name} is of type {tensor.dtype}, expected I32")


def _check_left_out(config: GPTQConfig, layer: str, part: str, file: Path) -> None:
    """Only the order of inputs can be left out, where it is that of their positions."""
    if part != "g_idx":
        raise ModelError(f"{file} holds {layer}.qweight, but no {layer}.{part}")
    if config.desc_act and config.group_size != -1:
        raise ModelError(f"{layer}: desc_act is true, but the checkpoint holds no {layer}.g_idx")


def check_values(config: GPTQConfig, layer: str, tensors: Mapping[str, Tensor]) -> None:
    """Compare the contents of the tensors of `layer` with `config`.

    Args:
        tensors: `qzeros`, `scales` and, if the checkpoint has it, `g_idx`.

    Raises:
        ModelError: they contradict it.
    """
    if not torch.isfinite(tensors["scales"]).all():
        raise ModelError(f"{layer}.scales holds values that are not finite")
    _check_zeros(config, layer, tensors["qzeros"])
    g_idx = tensors.get("g_idx")
    if g_idx is not None and not config.desc_act and (g_idx[1:] < g_idx[:-1]).any():
        raise ModelError(f"{layer}.g_idx is not in order, but desc_act is false")


def _check_zeros(config: GPTQConfig, layer: str, qzeros: Tensor) -> None:
    """Zero points are the middle of the codes where they are symmetric. In the other format they would
    all be one beside it, which asymmetric ones, each of another group, are not."""
    zeros = unpack_columns(shift_zeros(qzeros, config.bits, config.zero_offset), config.bits)
    middle = 1 << (config.bits - 1)
    form, other = ("gptq_v2", "gptq") if config.zero_offset == 0 else ("gptq", "gptq_v2")
    if (zeros == (middle - 1 if config.zero_offset == 0 else middle + 1)).all():
        raise ModelError(
            f"{layer}.qzeros: as checkpoint_format {form!r} has it, all zero points are {zeros[0, 0]}; "
            f"as {other!r} they would be {middle}, that is, symmetric: checkpoint_format is wrong"
        )
    others = zeros[zeros != middle]
    if config.sym and others.numel():
        raise ModelError(
            f"{layer}.qzeros: as checkpoint_format {form!r} has it, a zero point is {others[0]}, "
            f"but sym is true, so that all are {middle}"
        )
