"""Weights that were pickled (``pytorch_model*.bin``), read without running any code of theirs."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from server.checkpoints.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""torch's name of a type → safetensors'."""


def load_pickled(file: Path) -> Mapping[str, Tensor]:
    """The tensors in a file; their bytes are read when they are looked at, where its format allows that.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    import torch

    try:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # of PyTorch before 1.6, which cannot be mapped
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(f"{file} is not a readable file of pickled weights: {first}") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ModelError(f"{file} does not hold tensors by name")
    return found
