"""One quantised matrix as kernels take it: its groups in order, whatever the order of its inputs was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from server.gptq.config import GPTQConfig, GPTQError
from server.gptq.dequantise import dequantise
from server.gptq.packing import shift_zeros, unpack_columns, unpack_rows


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """A matrix [outputs, inputs] in the tensors of a checkpoint.

    Attributes:
        bits: of a code.
        group_size: inputs of a group; never -1.
        qweight: int32 [inputs / n, outputs]: the codes, inputs in the checkpoint's order.
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

    def codes(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Codes of outputs `start` to `stop`, inputs in order of groups: uint8 [inputs, stop - start]."""
        codes = unpack_rows(self.qweight[:, start:stop], self.bits)
        return codes if self.order is None else codes[self.order]

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The matrix as `torch.nn.Linear` would have it: [outputs, inputs] in the checkpoint's order."""
        weight = dequantise(self.codes(), self.zeros, self.scales, self.group_size, dtype)
        if self.order is not None:
            weight = torch.empty_like(weight).index_copy_(0, self.order, weight)
        return weight.t()


def weight_of(
    config: GPTQConfig, qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, name: str
) -> QuantisedWeight:
    """Put the tensors of one layer together.

    Args:
        g_idx: int32 [inputs]: input → group; None: groups are in order.
        name: of the layer, for errors.

    Raises:
        GPTQError: groups of unequal size, or zero points that do not fit.
    """
    inputs = qweight.shape[0] * config.codes_per_word
    group_size = inputs if config.group_size == -1 else config.group_size
    return QuantisedWeight(
        bits=config.bits,
        group_size=group_size,
        qweight=qweight,
        zeros=unpack_columns(shift_zeros(qzeros, config.bits, config.zero_offset), config.bits),
        scales=scales,
        order=None if g_idx is None else _order(g_idx.long(), group_size, name),
    )


def _order(g_idx: Tensor, group_size: int, name: str) -> Tensor | None:
    """Inputs sorted by group, None where they are; inputs of a group keep their order."""
    in_order = torch.arange(g_idx.numel(), device=g_idx.device) // group_size
    if torch.equal(g_idx, in_order):
        return None
    order = torch.argsort(g_idx, stable=True)
    if not torch.equal(g_idx[order], in_order):
        raise GPTQError(f"{name}.g_idx does not form groups of {group_size} inputs each")
    return order
