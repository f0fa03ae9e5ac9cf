"""One quantized matrix as kernels take it: its groups in order, whatever the order of its inputs was."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.layers.codes import CodesForm, CodesMatrix, SmallCodes
from server.quantization.gptq.config import GPTQConfig
from server.quantization.gptq.dequantize import dequantize
from server.quantization.gptq.packing import shift_zeros, unpack_columns, unpack_rows

_LARGEST_GROUP = 128
"""Of inputs that kernels take together."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A matrix [outputs, inputs] in the tensors of a checkpoint: small integers, and a scale and a zero point
    for each group of inputs.

    Attributes:
        bits: of a code.
        group_size: inputs of a group, never -1.
        qweight: int32 [inputs / n, outputs]: the codes, n in a word, the first in its lowest bits; inputs
            in the checkpoint's order.
        zeros: uint8 [groups, outputs].
        scales: float [groups, outputs].
        order: int64 [inputs]: place → input, with the inputs of a group side by side; None: they
            are so already.
    """

    bits: int
    group_size: int
    qweight: Tensor
    zeros: Tensor
    scales: Tensor
    order: Tensor | None

    @property
    def inputs(self) -> int:
        return self.qweight.shape[0] * (32 // self.bits)

    @property
    def outputs(self) -> int:
        return self.qweight.shape[1]

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is the middle of the codes."""
        return bool((self.zeros == 1 << (self.bits - 1)).all())

    def codes(self, outputs: slice | Tensor = slice(None)) -> Tensor:
        """Codes of some outputs, inputs in order of groups: uint8 [inputs, outputs]."""
        codes = unpack_rows(self.qweight[:, outputs], self.bits)
        return codes if self.order is None else codes[self.order]

    @property
    def form(self) -> CodesForm:
        """The form of `small_codes` that takes the least memory."""
        return form_of(self.bits, self.group_size, self.scales.dtype, symmetric=self.symmetric)

    def small_codes(self, form: CodesForm) -> CodesMatrix:
        """The matrix for kernels that multiply with codes; a large group becomes several that are alike.

        Args:
            form: `self.form`, or that of several matrices of which some have zero points.
        """

        def by_outputs(of_groups: Tensor) -> Tensor:
            return of_groups.t().repeat_interleave(self.group_size // form.group_size, dim=1).contiguous()

        def take(outputs: Tensor) -> SmallCodes:
            scales, middle = self.scales[:, outputs], 1 << (self.bits - 1)
            zeros = (self.zeros[:, outputs].to(torch.int16) - middle).to(torch.int8)
            return SmallCodes(
                self.codes(outputs).t().contiguous(),
                by_outputs(scales if form.scales == "half" else scales.float()),
                None if form.offsets == "none" else by_outputs(zeros),
            )

        order = None if self.order is None else self.order.int()
        return CodesMatrix(form, self.outputs, take, order)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The matrix as `torch.nn.Linear` would have it: [outputs, inputs] in the checkpoint's order."""
        weight = dequantize(self.codes(), self.zeros, self.scales, self.group_size, dtype)
        if self.order is not None:
            weight = torch.empty_like(weight).index_copy_(0, self.order, weight)
        return weight.t()


def form_of(bits: int, group_size: int, scales: torch.dtype, *, symmetric: bool) -> CodesForm:
    """How kernels take codes in groups.

    Args:
        scales: their type.
        symmetric: every zero point is the middle of the codes.
    """
    return CodesForm(
        bits,
        math.gcd(group_size, _LARGEST_GROUP),
        scales="half" if scales == torch.float16 else "float",
        offsets="none" if symmetric else "zeros",
    )


def weight_of(
    config: GPTQConfig, qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, name: str
) -> QuantizedWeight:
    """Put the tensors of one layer together.

    Args:
        g_idx: int32 [inputs]: input → group; None: groups are in order.
        name: of the layer, for errors.

    Raises:
        ModelError: groups of unequal size, or zero points that do not fit.
    """
    inputs = qweight.shape[0] * config.codes_per_word
    group_size = inputs if config.group_size == -1 else config.group_size
    return QuantizedWeight(
        bits=config.bits,
        group_size=group_size,
        qweight=qweight,
        zeros=unpack_columns(shift_zeros(qzeros, config.bits, config.zero_offset), config.bits),
        scales=scales,
        order=None if g_idx is None else order_of(g_idx.long(), group_size, name),
    )


def order_of(g_idx: Tensor, group_size: int, name: str) -> Tensor | None:
    """Inputs sorted by group, None where they are; inputs of a group keep their order."""
    in_order = torch.arange(g_idx.numel(), device=g_idx.device) // group_size
    if torch.equal(g_idx, in_order):
        return None
    order = torch.argsort(g_idx, stable=True)
    if not torch.equal(g_idx[order], in_order):
        raise ModelError(f"{name}.g_idx does not form groups of {group_size} inputs each")
    return order
