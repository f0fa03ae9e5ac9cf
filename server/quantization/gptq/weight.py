"""One quantized matrix as kernels take it: its groups in order, whatever the order of its inputs was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.layers.linear import GroupedCodes
from server.quantization.gptq.config import GPTQConfig
from server.quantization.gptq.dequantize import dequantize
from server.quantization.gptq.packing import shift_zeros, unpack_columns, unpack_rows


@dataclass(frozen=True, slots=True)
class QuantizedWeight(GroupedCodes):
    """A matrix in the tensors of a checkpoint; its `group_size` is never -1."""

    def codes(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Codes of outputs `start` to `stop`, inputs in order of groups: uint8 [inputs, stop - start]."""
        codes = unpack_rows(self.qweight[:, start:stop], self.bits)
        return codes if self.order is None else codes[self.order]

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The matrix as `torch.nn.Linear` would have it: [outputs, inputs] in the checkpoint's order."""
        weight = dequantize(self.codes(), self.zeros, self.scales, self.group_size, dtype)
        if self.order is not None:
            weight = torch.empty_like(weight).index_copy_(0, self.order, weight)
        return weight.t()


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
