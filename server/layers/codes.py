"""Matrices of small codes as kernels take them, whatever format they are stored in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

ScaleKind = Literal["float", "half", "fine"]
OffsetKind = Literal["none", "zeros", "like scales"]


@dataclass(frozen=True, slots=True)
class CodesForm:
    """How a matrix is made of codes: ``w = scale · (code − middle − zero)`` or ``scale · code + offset``.

    The middle of codes of n bits is ``2 ** (n − 1)``; a group of inputs shares a scale.

    Attributes:
        bits: of a code: 4, 5, 6 or 8.
        group_size: inputs of a group, a multiple of 16.
        unit: groups that share a coarse scale, which theirs multiply; 1 where there is none.
        scales: float32, float16, or ("fine") int8, to be multiplied with a coarse one.
        offsets: none; int8 zero points; or offsets of the kind that scales are, in the place of the middle.
    """

    bits: int
    group_size: int
    unit: int = 1
    scales: ScaleKind = "float"
    offsets: OffsetKind = "none"


@dataclass(frozen=True, slots=True)
class SmallCodes:
    """Some outputs of a quantized matrix.

    Attributes:
        codes: uint8 [outputs, inputs].
        scales: [outputs, groups], of the type that the form says.
        offsets: [outputs, groups], likewise; zero points without the middle.
        coarse: float16 [1 or 2, outputs, units]: of fine scales, and of fine offsets.
    """

    codes: Tensor
    scales: Tensor
    offsets: Tensor | None = None
    coarse: Tensor | None = None


@dataclass(frozen=True, slots=True)
class CodesMatrix:
    """A quantized matrix, a byte for each code only while kernels take it.

    Attributes:
        outputs: how many it has.
        take: the codes of some outputs, int64 [n].
        order: int32 [inputs]: place → input, where the inputs of a group are not side by side; codes are in
            the order of places.
    """

    form: CodesForm
    outputs: int
    take: Callable[[Tensor], SmallCodes]
    order: Tensor | None = None
