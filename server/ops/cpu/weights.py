"""Weights in the memory and in the layouts that the C++ kernels read."""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import addressof, c_char
from typing import Any

import torch
from torch import Tensor, nn

from server.layers.codes import CodesForm, CodesMatrix, OffsetKind, ScaleKind
from server.layers.expert_stack import ExpertStack
from server.layers.linear import LinearLayer
from server.ops.backend import Arithmetic
from server.ops.cpu.library import NativeLibrary
from server.ops.cpu.memory import map_huge_pages
from server.ops.cpu.rounded import form_of, rounded
from server.ops.cpu.structs import CodesPart, CodesSource, Matrix

STRIPE = 32
"""Outputs that lie together."""
STRIPES_AT_ONCE = 4
"""Whose codes are bytes at a time, while they are packed."""
SCALES: dict[ScaleKind, int] = {"float": 0, "half": 1, "fine": 2}
OFFSETS: dict[OffsetKind, int] = {"none": 0, "zeros": 1, "like scales": 2}
"""By the numbers that stand for them in C."""


def linears_of(model: Any) -> list[LinearLayer]:
    """Every linear layer of a `Decoder`."""
    found = [model.head]
    for layer in model.layers:
        found += [layer.attention.qkv, layer.attention.output]
        experts, part = layer.experts, layer.feed_forward
        if experts is not None:
            found += [one for one in (experts.router, experts.shared_gate) if one is not None]
            part = experts.shared
        if part is not None:
            found += [part.gate_up, part.down]
    return found


Stack = nn.Parameter | ExpertStack
"""Matrices of experts, as floats or as codes."""


def stacks_of(model: Any) -> list[Stack]:
    """The matrices of all experts of a `Decoder`: [experts, outputs, inputs] each."""
    experts = [layer.experts for layer in model.layers if layer.experts is not None]
    return [stack for each in experts for stack in (each.gate_up, each.down)]


class PackedWeights:
    """One piece of memory for packed weights, in the order in which a step reads them.

    Args:
        library: the kernels.
        linears, stacks: all that will be packed, in any order.
        arithmetic: what products with codes compute with; with ``int8`` linear layers of floats are rounded
            to codes.

    Attributes:
        size: of that memory, in bytes.
    """

    def __init__(
        self,
        library: NativeLibrary,
        linears: Iterable[LinearLayer],
        stacks: Iterable[Stack] = (),
        arithmetic: Arithmetic = "exact",
    ) -> None:
        self._library = library
        self._arithmetic = arithmetic
        self.size = sum(self._size(linear) for linear in linears)
        self.size += sum(len(stack) * self._size_of_one(stack) for stack in stacks)
        self._memory = map_huge_pages(self.size)
        self._next = addressof(c_char.from_buffer(self._memory))
        self._kept: list[object] = []

    def pack(self, linear: LinearLayer, *, halves: bool = False) -> Matrix:
        """Pack the weight of `linear` behind the last one; the layer is left without.

        Args:
            halves: it is two matrices on top of each other (gate and up), to be interleaved.
        """
        if linear.dense and self._arithmetic == "exact":
            matrix = self._pack_floats(linear.weight, halves=halves)
        else:
            pieces = iter([rounded(linear.weight)]) if linear.dense else linear.small_codes()
            matrix = self._pack_codes(pieces, halves=halves)
        linear.release()
        return matrix

    def pack_stack(self, stack: Stack, *, halves: bool = False) -> int:
        """Pack matrices [experts, outputs, inputs] one behind the other; the stack is left empty.

        Returns:
            The address of a `Matrix` for each.
        """
        if isinstance(stack, ExpertStack):
            matrices = [self._pack_codes([stack.small_codes(e)], halves=halves) for e in range(len(stack))]
            stack.release()
        else:
            matrices = [self._pack_floats(matrix, halves=halves) for matrix in stack.detach()]
            stack.data = stack.new_empty(0)
        array = (Matrix * len(matrices))(*matrices)
        self._kept.append(array)
        return addressof(array)

    def _pack_floats(self, weight: Tensor, *, halves: bool) -> Matrix:
        matrix = Matrix(data=self._next)
        self._library.pack(weight, self._next, halves=halves)
        self._next += self._library.packed_bytes(weight.dtype, *weight.shape)
        return matrix

    def _pack_codes(self, pieces: Iterable[CodesMatrix], *, halves: bool) -> Matrix:
        """Pack the pieces of a matrix, in the order of their outputs."""
        parts, order = [], None
        for piece in pieces:
            part = self._part(piece.form, piece.outputs)
            part.data = self._next
            for stripes in torch.split(_places(piece.outputs, halves), STRIPES_AT_ONCE * STRIPE):
                self._pack_stripes(piece, stripes)
            parts.append(part)
            order = piece.order
        array = (CodesPart * len(parts))(*parts)
        self._kept += [array, order]
        places = None if order is None else order.data_ptr()
        return Matrix(order=places, parts=addressof(array), count=len(parts))

    def _pack_stripes(self, piece: CodesMatrix, places: Tensor) -> None:
        """Pack the stripes that have those outputs at their places."""
        there = places >= 0
        taken = piece.take(places[there].long())
        rows, inputs = taken.codes.shape
        outputs = torch.where(there, there.cumsum(0) - 1, -1).int()
        source = CodesSource(
            codes=taken.codes.data_ptr(),
            scales=taken.scales.data_ptr(),
            offsets=None if taken.offsets is None else taken.offsets.data_ptr(),
            coarse=None if taken.coarse is None else taken.coarse.data_ptr(),
            outputs=outputs.data_ptr(),
            rows=rows,
        )
        part = self._part(piece.form, len(places))
        part.data = self._next
        self._library.pack_codes(part, source, inputs)
        self._next += self._library.codes_bytes(part, inputs)

    def _part(self, form: CodesForm, outputs: int) -> CodesPart:
        return CodesPart(
            stripes=-(-outputs // STRIPE),
            as_bytes=self._arithmetic == "int8",
            bits=form.bits,
            group=form.group_size,
            unit=form.unit,
            scales=SCALES[form.scales],
            offsets=OFFSETS[form.offsets],
        )

    def _size(self, linear: LinearLayer) -> int:
        if not linear.dense:
            forms = linear.codes_forms()
        elif self._arithmetic == "exact":
            return self._library.packed_bytes(linear.weight.dtype, *linear.weight.shape)
        else:
            outputs, inputs = linear.weight.shape
            forms = [(form_of(inputs), outputs, inputs)]
        return sum(self._codes_bytes(form, outputs, inputs) for form, outputs, inputs in forms)

    def _size_of_one(self, stack: Stack) -> int:
        _, outputs, inputs = stack.shape
        if isinstance(stack, ExpertStack):
            return self._codes_bytes(stack.codes_form(), outputs, inputs)
        return self._library.packed_bytes(stack.dtype, outputs, inputs)

    def _codes_bytes(self, form: CodesForm, outputs: int, inputs: int) -> int:
        return self._library.codes_bytes(self._part(form, outputs), inputs)


def _places(outputs: int, halves: bool) -> Tensor:
    """int32: which output stands at a place of the packed stripes; -1: none."""
    places = torch.full((-(-outputs // STRIPE) * STRIPE,), -1, dtype=torch.int32)
    order = torch.arange(outputs, dtype=torch.int32)
    if halves:
        order = order.view(2, -1, STRIPE // 2).transpose(0, 1).reshape(-1)
    places[:outputs] = order
    return places
