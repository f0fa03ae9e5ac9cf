"""Blocks of GGUF files as codes, scales and offsets, without making floats of them.

Each type is one function from blocks, uint8 [rows, blocks of a row, bytes], to the parts of
`server.layers.codes.SmallCodes`. Layouts are those of ggml's ``block_*`` structures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from server.layers.codes import CodesForm, SmallCodes

Bytes = np.ndarray
"""uint8, or what is viewed as another type."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What blocks hold.

    Attributes:
        codes: uint8 [rows, blocks, inputs of a block].
        scales, offsets: [rows, blocks, groups of a block].
        coarse: of scales and offsets, float16 [rows, blocks] each.
    """

    codes: Bytes
    scales: Bytes
    offsets: Bytes | None = None
    coarse: tuple[Bytes, ...] = ()


def _halves(blocks: Bytes, at: int) -> Bytes:
    """The float16 at a place of each block: [rows, blocks, 1]."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)


def _nibbles(packed: Bytes) -> Bytes:
    """The lower halves of bytes, then the upper ones."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """32 bits, each as 0 or 16."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[..., at : at + 4]), axis=-1, bitorder="little")
    return bits << 4


def _q8_0(blocks: Bytes) -> _Parts:
    return _Parts(blocks[..., 2:] ^ 128, _halves(blocks, 0))


def _q4_0(blocks: Bytes) -> _Parts:
    return _Parts(_nibbles(blocks[..., 2:]), _halves(blocks, 0))


def _q4_1(blocks: Bytes) -> _Parts:
    return _Parts(_nibbles(blocks[..., 4:]), _halves(blocks, 0), _halves(blocks, 2))


def _q5_0(blocks: Bytes) -> _Parts:
    return _Parts(_nibbles(blocks[..., 6:]) | _fifth_bits(blocks, 2), _halves(blocks, 0))


def _q5_1(blocks: Bytes) -> _Parts:
    return _Parts(_nibbles(blocks[..., 8:]) | _fifth_bits(blocks, 4), _halves(blocks, 0), _halves(blocks, 2))


def _q4_k(blocks: Bytes) -> _Parts:
    quads = blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32)
    return _with_six_bits(blocks, _nibbles(quads).reshape(*blocks.shape[:2], 256))


def _q5_k(blocks: Bytes) -> _Parts:
    quads = blocks[..., 48:].reshape(*blocks.shape[:2], 4, 32)
    low = _nibbles(quads).reshape(*blocks.shape[:2], 8, 32)
    high = blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]
    return _with_six_bits(blocks, (low | (high & 1) << 4).reshape(*blocks.shape[:2], 256))


def _with_six_bits(blocks: Bytes, codes: Bytes) -> _Parts:
    """Of blocks that begin with two float16 and eight scales and minima of 6 bits in 12 bytes."""
    first, second, third = (blocks[..., at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate((first & 63, third & 15 | first >> 6 << 4), axis=-1)
    minima = np.concatenate((second & 63, third >> 4 | second >> 6 << 4), axis=-1)
    return _Parts(codes, scales, minima, (_halves(blocks, 0), -_halves(blocks, 2)))


def _q6_k(blocks: Bytes) -> _Parts:
    shape = blocks.shape[:2]
    low = blocks[..., :128].reshape(*shape, 2, 64)
    low = _nibbles(low).reshape(*shape, 2, 4, 32)
    high = blocks[..., 128:192].reshape(*shape, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    codes = (low | (high & 3) << 4).reshape(*shape, 256)
    return _Parts(codes, blocks[..., 192:208], None, (_halves(blocks, 208),))


_FINE: dict[str, tuple[Callable[[Bytes], _Parts], CodesForm]] = {
    "Q4_K": (_q4_k, CodesForm(4, 32, 8, "fine", "like scales")),
    "Q5_K": (_q5_k, CodesForm(5, 32, 8, "fine", "like scales")),
    "Q6_K": (_q6_k, CodesForm(6, 16, 16, "fine")),
}
_KINDS = _FINE | {
    "Q8_0": (_q8_0, CodesForm(8, 32, scales="half")),
    "Q4_0": (_q4_0, CodesForm(4, 32, scales="half")),
    "Q4_1": (_q4_1, CodesForm(4, 32, scales="half", offsets="like scales")),
    "Q5_0": (_q5_0, CodesForm(5, 32, scales="half")),
    "Q5_1": (_q5_1, CodesForm(5, 32, scales="half", offsets="like scales")),
}
FORMS = {kind: form for kind, (_, form) in _KINDS.items()}
"""By ggml's name of the type."""


def block_size(kind: str) -> tuple[int, int]:
    """(inputs, bytes) of a block."""
    inputs, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(inputs), int(size)


def codes_of(kind: str, rows: Tensor) -> SmallCodes:
    """What `rows` of blocks, uint8 [outputs, bytes of a row], hold."""
    split, _ = _KINDS[kind]
    parts = split(rows.numpy().reshape(len(rows), -1, block_size(kind)[1]))

    def flat(values: Bytes, dtype: type | None = None) -> Tensor:
        whole = np.ascontiguousarray(values if dtype is None else values.view(dtype))
        return torch.from_numpy(whole.reshape(len(rows), -1))

    scale = np.int8 if kind in _FINE else None
    return SmallCodes(
        flat(parts.codes),
        flat(parts.scales, scale),
        None if parts.offsets is None else flat(parts.offsets, scale),
        torch.stack([flat(coarse) for coarse in parts.coarse]) if parts.coarse else None,
    )
