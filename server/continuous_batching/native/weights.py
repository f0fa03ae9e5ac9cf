"""Weights in the memory and in the layouts that the C++ kernels read."""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import addressof, c_char
from typing import Any

import torch
from torch import Tensor

from server.continuous_batching.layers.linear import Linear, empty_parameter
from server.continuous_batching.native.library import NativeLibrary
from server.continuous_batching.native.memory import map_huge_pages
from server.continuous_batching.native.structs import Int4Source, Matrix
from server.gptq.linear import GPTQLinear
from server.gptq.weight import QuantisedWeight

STRIPE = 32
"""Outputs that lie together."""
BITS = 4
"""Of a quantised weight."""

AnyLinear = Linear | GPTQLinear


def linears_of(model: Any) -> list[AnyLinear]:
    """Every linear layer of a `Decoder`."""
    found = [model.head]
    for layer in model.layers:
        found += [layer.attention.qkv, layer.attention.output]
        found += [layer.feed_forward.gate_up, layer.feed_forward.down]
    return found


class PackedWeights:
    """One piece of memory for packed weights, in the order in which a step reads them.

    Args:
        library: the kernels.
        linears: all that will be packed, in any order.

    Attributes:
        size: of that memory, in bytes.
    """

    def __init__(self, library: NativeLibrary, linears: Iterable[AnyLinear]) -> None:
        self._library = library
        self.size = sum(self._size(linear) for linear in linears)
        self._memory = map_huge_pages(self.size)
        self._next = addressof(c_char.from_buffer(self._memory))
        self._orders: list[Tensor] = []

    def pack(self, linear: AnyLinear, *, halves: bool = False) -> Matrix:
        """Pack the weight of `linear` behind the last one; the layer is left without.

        Args:
            halves: it is two matrices on top of each other (gate and up), to be interleaved.
        """
        address = self._next
        self._next += self._size(linear)
        if isinstance(linear, GPTQLinear):
            (weight,) = linear.quantised_weights()
            matrix = self.pack_int4(weight, address, halves=halves)
            linear.release()
            return matrix
        plain = linear.weight
        self._library.pack(plain, address, halves=halves)
        linear.weight = empty_parameter(0, dtype=plain.dtype, device=plain.device)
        return Matrix(data=address)

    def pack_int4(self, weight: QuantisedWeight, address: int, *, halves: bool) -> Matrix:
        """Pack a quantised weight at an address."""
        order = None
        if weight.order is not None:
            order = weight.order.int()
            self._orders.append(order)
        matrix = Matrix(
            data=address,
            order=None if order is None else order.data_ptr(),
            group=weight.group_size,
            has_zeros=not weight.symmetric,
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

    def _size(self, linear: AnyLinear) -> int:
        if not isinstance(linear, GPTQLinear):
            return self._library.packed_bytes(linear.weight.dtype, *linear.weight.shape)
        (weight,) = linear.quantised_weights()
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
