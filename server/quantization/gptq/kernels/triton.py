"""Products on NVIDIA GPUs with Triton kernels of our own."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from server.quantization.gptq.kernels.base import GPTQKernel
from server.quantization.gptq.weight import QuantizedWeight

DENSE_ROWS = 576
"""Rows from which on the whole weight is dequantized for cuBLAS. `benchmarks.gpu.gptq` on an H100, the
products of a layer of Llama 3 8B: with codes 482 µs for 512 rows and 935 for 1,024, dequantized 504 and
798, so that they cross between."""
OUTPUTS_AT_ONCE = 1024
"""Outputs whose codes are unpacked at the same time while the weight is packed."""


class TritonKernel(GPTQKernel):
    """Codes and factors in the layout of `triton_codes`, activations in float16 or bfloat16."""

    name = "triton"
    words: Tensor
    factors: Tensor
    arrivals: Tensor

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        super().__init__(weight, dtype)
        from server.quantization.gptq.kernels import triton_codes, triton_product

        self.bits, self.group_size = weight.bits, weight.group_size
        self.scales_dtype = weight.scales.dtype
        words = weight.qweight.new_empty(weight.inputs // triton_codes.PIECE, weight.outputs, 4 * weight.bits)
        for start in range(0, weight.outputs, OUTPUTS_AT_ONCE):
            stop = start + OUTPUTS_AT_ONCE
            words[:, start:stop] = triton_codes.pack_codes(weight.codes(slice(start, stop)), weight.bits)
        self.register_buffer("words", words)
        self.register_buffer("factors", triton_codes.pack_factors(weight.scales, weight.zeros))
        self.symmetric = weight.symmetric
        self.register_buffer("arrivals", words.new_zeros(triton_product.COUNTERS))

    @classmethod
    def refuses(cls, bits: int, device: torch.device, dtype: torch.dtype) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if dtype not in (torch.float16, torch.bfloat16):
            return f"takes float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "needs an Ampere GPU or a later one"
        return None

    @classmethod
    def refuses_weight(cls, weight: QuantizedWeight) -> str | None:
        if weight.inputs % 128:
            return f"{weight.inputs} inputs are not a multiple of 128"
        if weight.group_size % 128 and 128 % weight.group_size:
            return f"groups of {weight.group_size} inputs neither divide 128 nor are multiples of it"
        if weight.scales.dtype not in (torch.float16, torch.bfloat16):
            return "scales are neither float16 nor bfloat16"
        return None

    def multiply(self, x: Tensor) -> Tensor:
        if x.shape[0] >= DENSE_ROWS:
            return torch.nn.functional.linear(x, self.dequantized(x.dtype))
        return self.fused(x)

    def add_to(self, x: Tensor, residual: Tensor) -> Tensor:
        x = x if self.order is None else x[:, self.order]
        if x.shape[0] >= DENSE_ROWS:
            return residual.addmm_(x, self.dequantized(x.dtype).t())
        return self.fused(x, residual)

    def fused(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The product with codes, of fewer than `DENSE_ROWS` rows; `residual` is added and overwritten."""
        from server.quantization.gptq.kernels import triton_product

        return triton_product.product(
            x.contiguous(), self.words, self.factors, self.bits, self.group_size, self.scales_dtype,
            arrivals=self.arrivals, symmetric=self.symmetric, residual=residual,
        )  # fmt: skip

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight, [outputs, inputs] with inputs in the order of groups."""
        from server.quantization.gptq.kernels import triton_codes

        return triton_codes.dequantize(
            self.words, self.factors, self.bits, self.group_size, self.scales_dtype, dtype
        )
