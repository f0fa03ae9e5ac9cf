"""Dequantize, then multiply: runs everywhere and for everything, a part of the outputs at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from server.quantization.gptq.dequantize import dequantize
from server.quantization.gptq.kernels.base import GPTQKernel
from server.quantization.gptq.packing import pack_rows, unpack_rows
from server.quantization.gptq.weight import QuantizedWeight

WEIGHTS_AT_ONCE = 1 << 20
"""Weights that are floats at the same time."""


class DenseKernel(GPTQKernel):
    """Keeps the checkpoint's words, groups in order, and dequantizes them for each product."""

    name = "dequantize"
    words: Tensor
    zeros: Tensor
    scales: Tensor

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        super().__init__(weight, dtype)
        self.bits, self.group_size = weight.bits, weight.group_size
        self.step = max(1, WEIGHTS_AT_ONCE // weight.inputs)
        self.register_buffer("words", weight.qweight.clone())
        if weight.order is not None:
            for start in range(0, weight.outputs, self.step):
                part = slice(start, start + self.step)
                self.words[:, part] = pack_rows(weight.codes(slice(start, start + self.step)), weight.bits)
        self.register_buffer("zeros", weight.zeros)
        self.register_buffer("scales", weight.scales.clone())

    @classmethod
    def refuses(cls, bits: int, device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    @classmethod
    def refuses_weight(cls, weight: QuantizedWeight) -> str | None:
        return None

    def multiply(self, x: Tensor) -> Tensor:
        y = x.new_empty(x.shape[0], self.outputs)
        for start in range(0, self.outputs, self.step):
            part = slice(start, start + self.step)
            codes = unpack_rows(self.words[:, part], self.bits)
            weight = dequantize(codes, self.zeros[:, part], self.scales[:, part], self.group_size, x.dtype)
            y[:, part] = functional.linear(x, weight.t())
        return y
