"""Tensors of a GGUF file as floats, part by part; the `gguf` package says what blocks stand for."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize
from torch import Tensor

from server.quantization.gguf.names import Place

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
"""Types of blocks that are supported, by ggml's names."""
_PART = 2**21
"""Numbers that a thread dequantizes at once."""


def read_tensor(place: Place, dtype: torch.dtype) -> Tensor:
    """A tensor as transformers has it.

    Returns:
        `dtype` of the shape `place.shape`. The only rounding is the last, from float32.
    """
    rows = _rows(place)
    kind = GGMLQuantizationType[place.tensor.kind]
    columns = place.shape[-1]
    floats = torch.empty(len(rows), columns, dtype=dtype)
    step = max(1, _PART // columns)

    def fill(start: int) -> None:
        part = np.require(dequantize(rows[start : start + step], kind), np.float32, ["C", "W"])
        if place.change == "plus one":
            part -= np.float32(1)
        floats[start : start + step] = torch.from_numpy(part)

    starts = range(0, len(rows), step)
    if len(starts) == 1:
        fill(0)
    else:
        with ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1)) as threads:
            for _ in threads.map(fill, starts):  # raises what a thread raised
                pass
    found = floats.view(place.shape)
    return halves_apart(found, place.heads) if place.change == "halves interleaved" else found


def read_blocks(place: Place) -> Tensor:
    """The blocks of a tensor in the order of transformers' outputs: uint8 [outputs, bytes of a row]."""
    rows = torch.from_numpy(np.require(_rows(place), requirements="W"))
    return halves_apart(rows, place.heads) if place.change == "halves interleaved" else rows


def halves_apart(interleaved: Tensor, heads: int) -> Tensor:
    """Outputs of each head with the two halves one behind the other, from one beside the other."""
    pairs = interleaved.view(heads, -1, 2, *interleaved.shape[1:])
    return pairs.transpose(1, 2).reshape(interleaved.shape)


def _rows(place: Place) -> np.ndarray:
    """The blocks of the tensor, or of one expert: uint8 [rows, bytes of a row], mapped from the file."""
    tensor = place.tensor
    blocks = np.memmap(tensor.file, np.uint8, "r", offset=tensor.offset, shape=(tensor.size,)).view(
        np.ndarray
    )
    if place.expert is not None:
        size = tensor.size // tensor.shape[0]
        blocks = blocks[place.expert * size : (place.expert + 1) * size]
    return blocks.reshape(prod(place.shape[:-1]), -1)
