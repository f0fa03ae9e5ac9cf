"""Products on NVIDIA GPUs with Triton kernels of our own, for machines without vLLM."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from server.gptq.kernels.base import GPTQKernel
from server.gptq.weight import QuantisedWeight

SUB_BLOCK = 16
"""Inputs that a product of the matrix units takes at once, and rows of words of a block."""
DENSE_ROWS = 128
"""Rows from which on the whole weight is dequantised for cuBLAS. `benchmarks.gpu.gptq` on an H100, the
products of Llama 3 8B: with codes 254 µs a layer for 64 rows and 799 for 256, dequantised 361 and 399,
so that they cross between."""
FUSED_ROWS = 256
"""The most rows that the product with codes takes."""
OUTPUTS_AT_ONCE = 1024
"""Outputs whose codes are unpacked at the same time while the weight is packed."""


class TritonKernel(GPTQKernel):
    """Words in blocks of 16 rows; word r of a block holds inputs r, r + 16, r + 32 … of the block's.

    So the inputs that meet one bit position of a block's words are neighbours, and share a group.
    """

    name = "triton"
    words: Tensor
    scales: Tensor
    zeros: Tensor | None
    arrivals: Tensor

    def __init__(self, weight: QuantisedWeight, dtype: torch.dtype) -> None:
        super().__init__(weight, dtype)
        self.bits, self.group_size = weight.bits, weight.group_size
        words = torch.empty_like(weight.qweight, memory_format=torch.contiguous_format)
        for start in range(0, weight.outputs, OUTPUTS_AT_ONCE):
            part = slice(start, start + OUTPUTS_AT_ONCE)
            words[:, part] = pack_blocks(weight.codes(start, start + OUTPUTS_AT_ONCE), weight.bits)
        self.register_buffer("words", words)
        self.register_buffer("scales", weight.scales.clone())
        self.zero = 1 << (weight.bits - 1) if weight.symmetric else -1
        self.register_buffer("zeros", weight.zeros if self.zero < 0 else None)
        from server.gptq.kernels import triton_product

        tiles = triton_product.tiles_at_most(FUSED_ROWS, weight.outputs)
        self.register_buffer("arrivals", words.new_zeros(tiles))

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
    def refuses_weight(cls, weight: QuantisedWeight) -> str | None:
        block = SUB_BLOCK * (32 // weight.bits)
        return f"{weight.inputs} inputs are not a multiple of {block}" if weight.inputs % block else None

    def multiply(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        return self.dense(x) if x.shape[0] >= DENSE_ROWS else self.fused(x)

    def fused(self, x: Tensor) -> Tensor:
        """The product with codes of up to `FUSED_ROWS` rows; x is contiguous."""
        from server.gptq.kernels import triton_product

        return triton_product.product(x, *self._weight(), arrivals=self.arrivals)

    def dense(self, x: Tensor) -> Tensor:
        """The product with the dequantised weight."""
        from server.gptq.kernels import triton_product

        return x @ triton_product.dequantise(*self._weight(), dtype=x.dtype)

    def _weight(self) -> tuple[Tensor, Tensor, Tensor | None, int, int, int]:
        return self.words, self.scales, self.zeros, self.bits, self.group_size, self.zero


def pack_blocks(codes: Tensor, bits: int) -> Tensor:
    """uint8 [inputs, outputs] → int32 [inputs / n, outputs], in the layout of `TritonKernel`.

    A word's two halves hold neighbouring sub-blocks: sub-block 2i stands at bit ``bits · i`` and
    sub-block 2i + 1 at bit ``16 + bits · i``, so that one mask takes out both.
    """
    per_word = 32 // bits
    sub_blocks = codes.reshape(-1, per_word, SUB_BLOCK, codes.shape[1])  # [blocks, n, 16, outputs]
    words = torch.zeros_like(sub_blocks[:, 0], dtype=torch.int32)
    for place in range(per_word):
        words |= sub_blocks[:, place].to(torch.int32) << (bits * (place // 2) + 16 * (place % 2))
    return words.flatten(0, 1)
