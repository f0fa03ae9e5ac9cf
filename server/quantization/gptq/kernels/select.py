"""Which kernel multiplies with quantized weights, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

from server.quantization.gptq.kernels.base import GPTQKernel
from server.quantization.gptq.kernels.cpu import CpuKernel
from server.quantization.gptq.kernels.dense import DenseKernel
from server.quantization.gptq.kernels.marlin import MarlinKernel
from server.quantization.gptq.kernels.triton import TritonKernel
from server.quantization.gptq.weight import QuantizedWeight

CPU_KERNELS: tuple[type[GPTQKernel], ...] = (CpuKernel, DenseKernel)
CUDA_KERNELS: tuple[type[GPTQKernel], ...] = (MarlinKernel, TritonKernel, DenseKernel)
HOPPER_KERNELS: tuple[type[GPTQKernel], ...] = (TritonKernel, MarlinKernel, DenseKernel)
"""Of each kind of device, the fastest first; the last takes everything. On an H100 own kernels are ahead of
Marlin in bfloat16 (`benchmarks.gpu.gptq`); on other GPUs nothing has been measured."""


@dataclass(slots=True)
class KernelChoice:
    """The kernels that can run a model's weights on a device.

    Attributes:
        dtype: of the activations.
        usable: the fastest first.
        refused: name of a kernel → why it is not among them.
        used: name of a kernel → layers that got it.
        exceptions: why a layer did not get the first one, said once each.
    """

    dtype: torch.dtype
    usable: tuple[type[GPTQKernel], ...]
    refused: dict[str, str]
    used: Counter[str] = field(default_factory=Counter)
    exceptions: dict[str, None] = field(default_factory=dict)

    def kernel_for(self, weight: QuantizedWeight) -> GPTQKernel:
        """`weight` in the fastest that can hold it."""
        for kernel in self.usable:
            reason = kernel.refuses_weight(weight)
            if reason is None:
                self.used[kernel.name] += 1
                return kernel(weight, self.dtype)
            self.exceptions[f"{kernel.name}: {reason}"] = None
        raise AssertionError("the last kernel takes every weight")

    def describe(self) -> dict[str, str]:
        """Name and reason for the operator."""
        names = ", ".join(f"{name} ({count} layers)" for name, count in self.used.most_common())
        reasons = [f"{name}: {reason}" for name, reason in self.refused.items()]
        return {"name": names, "reason": "; ".join([*reasons, *self.exceptions]) or "the fastest there is"}


def cuda_kernels(bits: int, device: torch.device, dtype: torch.dtype) -> tuple[type[GPTQKernel], ...]:
    """The kernels for a GPU, the fastest first."""
    hopper = torch.cuda.get_device_capability(device)[0] == 9
    return HOPPER_KERNELS if hopper and bits == 4 and dtype == torch.bfloat16 else CUDA_KERNELS


def choose_kernels(bits: int, device: torch.device, dtype: torch.dtype) -> KernelChoice:
    """The kernels for codes of `bits` bits and activations of type `dtype` on `device`."""
    refused: dict[str, str] = {}
    usable = []
    for kernel in CPU_KERNELS if device.type == "cpu" else cuda_kernels(bits, device, dtype):
        reason = kernel.refuses(bits, device, dtype)
        if reason is None:
            usable.append(kernel)
        else:
            refused[kernel.name] = reason
    return KernelChoice(dtype, tuple(usable), refused)
