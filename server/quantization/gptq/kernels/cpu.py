"""Products on a CPU with torch's int4 kernel.

The kernel (`aten::_weight_int4pack_mm_for_cpu`) computes ``scale · (code − 8) + offset`` in float32
registers, from x, scales and offsets in bfloat16: to round a float32 x to that would change answers. (It
takes float32 too, but is not vectorised for it, and no faster than to dequantize.) For one row it reads a
quarter of the memory that bfloat16 weights take. It dequantizes again for every few rows, so that from
`DENSE_ROWS` rows on a block of weights is dequantized once for all of them and multiplied by the matrix
units instead.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from server.quantization.gptq.kernels.base import GPTQKernel
from server.quantization.gptq.weight import QuantizedWeight

KERNEL_GROUP_SIZES = (128, 64, 32)
BLOCK = 64
"""Outputs that the kernel's layout keeps together (AVX-512)."""
OUTPUTS_MULTIPLE = 16
DENSE_ROWS = 128
"""Measured by `benchmarks/gptq_kernels.py` on one core of a Xeon with AMX, 2048 → 8192, groups of
128: 0.9 ms for one row, 0.42 ms for each further one (27 ms for 64, 54 ms for 128); 57 ms to
dequantize and 4 ms to multiply 128 rows. 1024 → 4096 crosses at the same place."""
BLOCKS_AT_ONCE = 16


class CpuKernel(GPTQKernel):
    """4-bit codes in torch's layout; a larger group is stored as several with the same scale."""

    name = "torch-int4"
    packed: Tensor
    scales_and_offsets: Tensor

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        super().__init__(weight, dtype)
        self.group_size = _kernel_group_size(weight.group_size)
        packed = torch.empty(weight.outputs, weight.inputs // 2, dtype=torch.uint8)
        for start in range(0, weight.outputs, BLOCK):
            codes = weight.codes(slice(start, start + BLOCK)).t().int().contiguous()
            packed[start : start + BLOCK] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        self.register_buffer("packed", packed)
        scales = weight.scales.float()
        offsets = (8 - weight.zeros.float()) * scales
        both = torch.stack((scales, offsets), dim=-1).bfloat16()
        repeats = weight.group_size // self.group_size
        self.register_buffer("scales_and_offsets", both.repeat_interleave(repeats, dim=0))

    @classmethod
    def refuses(cls, bits: int, device: torch.device, dtype: torch.dtype) -> str | None:
        if bits != 4:
            return f"takes 4 bits, not {bits}"
        if dtype != torch.bfloat16:
            return f"computes in bfloat16, not {str(dtype).removeprefix('torch.')}"
        return None

    @classmethod
    def refuses_weight(cls, weight: QuantizedWeight) -> str | None:
        if weight.outputs % OUTPUTS_MULTIPLE:
            return f"{weight.outputs} outputs are not a multiple of {OUTPUTS_MULTIPLE}"
        if _kernel_group_size(weight.group_size) == 0:
            return f"groups of {weight.group_size} inputs cannot be split into 32, 64 or 128"
        return None

    def multiply(self, x: Tensor) -> Tensor:
        if x.shape[0] >= DENSE_ROWS and blocks_are_known():
            return self._multiply_dense(x)
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.contiguous(), self.packed, self.group_size, self.scales_and_offsets
        )
        return y

    def _multiply_dense(self, x: Tensor) -> Tensor:
        y = x.new_empty(x.shape[0], self.outputs)
        step = BLOCKS_AT_ONCE * BLOCK
        for start in range(0, self.outputs, step):
            stop = min(start + step, self.outputs)
            y[:, start:stop] = x @ self.dequantized(start, stop)
        return y

    def dequantized(self, start: int, stop: int) -> Tensor:
        """Weights of outputs `start` (a multiple of the block) to `stop`: bfloat16 [inputs, outputs]."""
        weight = torch.empty(self.inputs, stop - start, dtype=torch.bfloat16)
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            codes = unpack_block(self.packed[first:last], self.inputs)
            scale, offset = self.scales_and_offsets[:, None, first:last].unbind(-1)
            centered = codes.to(torch.bfloat16).sub_(8).view(-1, self.group_size, last - first)
            torch.addcmul(offset, centered, scale, out=centered)
            weight[:, first - start : last - start] = centered.flatten(0, 1)
        return weight


def unpack_block(packed: Tensor, inputs: int) -> Tensor:
    """Codes of one block of torch's layout: uint8 [n, inputs / 2] → uint8 [inputs, n], n ≤ `BLOCK`.

    A whole block holds output j beside output j + 32, a shorter one output 2j beside 2j + 1.
    """
    halves = packed.reshape(inputs, -1)
    low, high = halves & 15, halves >> 4
    if packed.shape[0] == BLOCK:
        return torch.cat((low, high), dim=1)
    return torch.stack((low, high), dim=2).flatten(1)


@functools.cache
def blocks_are_known() -> bool:
    """Whether torch's layout on this processor is the one of `unpack_block`: it is tried out."""
    codes = (torch.arange(7 * OUTPUTS_MULTIPLE * 32) * 7 // 3 % 16).view(-1, 32).int()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    blocks = [unpack_block(part, 32) for part in packed.split(BLOCK)]
    return torch.equal(torch.cat(blocks, dim=1).t().int(), codes)


def _kernel_group_size(group_size: int) -> int:
    """The largest group that the kernel takes and that divides `group_size`; 0: none."""
    return next((size for size in KERNEL_GROUP_SIZES if group_size % size == 0), 0)
