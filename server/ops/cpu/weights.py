"""Weights in the memory and in the layouts that the C++ kernels read."""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import addressof, c_char
from typing import Any

import torch
from torch import Tensor, nn

from server.layers.linear import GroupedCodes, LinearLayer
from server.ops.cpu.library import NativeLibrary
from server.ops.cpu.memory import map_huge_pages
from server.ops.cpu.structs import Int4Source, Matrix
from server.quantization.gptq.stack import GroupedStack

STRIPE = 32
"""Outputs that lie together."""
BITS = 4
"""Of a quantized weight."""


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


Stack = nn.Parameter | GroupedStack
"""Matrices of experts that can be packed."""


def stacks_of(model: Any) -> list[Stack]:
    """The matrices of all experts of a `Decoder`: [experts, outputs, inputs] each."""
    experts = [layer.experts for layer in model.layers if layer.experts is not None]
    return [stack for each in experts for stack in (each.gate_up, each.down)]


class PackedWeights:
    """One piece of memory for packed weights, in the order in which a step reads them.

    Args:
        library: the kernels.
        linears, stacks: all that will be packed, in any order.

    Attributes:
        size: of that memory, in bytes.
    """

    def __init__(
        self, library: NativeLibrary, linears: Iterable[LinearLayer], stacks: Iterable[Stack] = ()
    ) -> None:
        self._library = library
        self.size = sum(self._size(linear) for linear in linears)
        self.size += sum(len(stack) * self._one(stack) for stack in stacks)
        self._memory = map_huge_pages(self.size)
        self._next = addressof(c_char.from_buffer(self._memory))
        self._orders: list[Tensor] = []

    def pack(self, linear: LinearLayer, *, halves: bool = False) -> Matrix:
        """Pack the weight of `linear` behind the last one; the layer is left without.

        Args:
            halves: it is two matrices on top of each other (gate and up), to be interleaved.
        """
        address = self._next
        self._next += self._size(linear)
        if linear.dense:
            self._library.pack(linear.weight, address, halves=halves)
            matrix = Matrix(data=address)
        else:
            (codes,) = linear.quantized_weights()
            matrix = self.pack_int4(codes, address, halves=halves)
        linear.release()
        return matrix

    def pack_stack(self, stack: Stack, *, halves: bool = False) -> tuple[Matrix, int]:
        """Pack matrices [experts, outputs, inputs] one behind the other; the stack is left empty.

        Returns:
            (the first, bytes of each).
        """
        address, size = self._next, self._one(stack)
        self._next += size * len(stack)
        packed = [self._pack_one(stack, e, address + e * size, halves) for e in range(len(stack))]
        if isinstance(stack, GroupedStack):
            stack.release()
        else:
            stack.data = stack.new_empty(0)
        return packed[0], size

    def _pack_one(self, stack: Stack, expert: int, address: int, halves: bool) -> Matrix:
        if isinstance(stack, GroupedStack):
            return self.pack_int4(stack.weight(expert), address, halves=halves, has_zeros=not stack.symmetric)
        self._library.pack(stack.detach()[expert], address, halves=halves)
        return Matrix(data=address)

    def _one(self, stack: Stack) -> int:
        """Bytes of one matrix of a stack, packed."""
        _, outputs, inputs = stack.shape
        if isinstance(stack, GroupedStack):
            zeros = not stack.symmetric
            return self._library.int4_bytes(outputs, inputs, stack.group_size, has_zeros=zeros)
        return self._library.packed_bytes(stack.dtype, outputs, inputs)

    def pack_int4(
        self, weight: GroupedCodes, address: int, *, halves: bool, has_zeros: bool | None = None
    ) -> Matrix:
        """Pack a quantized weight at an address.

        Args:
            has_zeros: its zero points are stored; None: where they are not all in the middle.
        """
        order = None
        if weight.order is not None:
            order = weight.order.int()
            self._orders.append(order)
        matrix = Matrix(
            data=address,
            order=None if order is None else order.data_ptr(),
            group=weight.group_size,
            has_zeros=not weight.symmetric if has_zeros is None else has_zeros,
        )
        scales, places = weight.scales.float(), _places(weight.outputs, halves)
        source = Int4Source(
            words=weight.qweight.data_ptr(),
            scales=scales.data_ptr(),
            zeros=weight.zeros.data_ptr(),
            order=matrix.order,
            outputs=places.data_ptr(),
            columns=weight.outputs,
        )
        self._library.pack_int4(matrix, source, weight.outputs, weight.inputs)
        return matrix

    def _size(self, linear: LinearLayer) -> int:
        if linear.dense:
            return self._library.packed_bytes(linear.weight.dtype, *linear.weight.shape)
        (weight,) = linear.quantized_weights()
        has_zeros = not weight.symmetric
        return self._library.int4_bytes(weight.outputs, weight.inputs, weight.group_size, has_zeros=has_zeros)


def _places(outputs: int, halves: bool) -> Tensor:
    """int32: which output stands at a place of the packed stripes; -1: none."""
    places = torch.full((-(-outputs // STRIPE) * STRIPE,), -1, dtype=torch.int32)
    order = torch.arange(outputs, dtype=torch.int32)
    if halves:
        order = order.view(2, -1, STRIPE // 2).transpose(0, 1).reshape(-1)
    places[:outputs] = order
    return places
