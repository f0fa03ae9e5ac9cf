"""Products on NVIDIA GPUs with Marlin (Frantar et al., 2024), by way of vLLM where it is installed.

Written for the interfaces of vLLM 0.26 (which takes an order of the inputs, left empty here) and 0.32.
Groups must stand in order: inputs of ``desc_act`` checkpoints are permuted before the product, as for
every kernel here.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from server.quantization.gptq.kernels.base import GPTQKernel
from server.quantization.gptq.packing import pack_rows
from server.quantization.gptq.weight import QuantizedWeight

OUTPUTS_AT_ONCE = 1024
"""Outputs whose codes are unpacked at the same time while the weight is packed."""

BLOCKS_PER_MULTIPROCESSOR = 4
"""The most that Marlin starts at once; its workspace holds a lock for each."""


class MarlinKernel(GPTQKernel):
    """Codes, scales and zero points in Marlin's layout, activations in float16 or bfloat16."""

    name = "marlin"
    words: Tensor
    scales: Tensor
    zeros: Tensor
    workspace: Tensor

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        super().__init__(weight, dtype)
        from vllm import _custom_ops as ops
        from vllm.model_executor.layers.quantization.utils import marlin_utils

        inputs, outputs = weight.inputs, weight.outputs
        words = weight.qweight.contiguous()
        if weight.order is not None:
            parts = range(0, outputs, OUTPUTS_AT_ONCE)
            packed = [pack_rows(weight.codes(slice(at, at + OUTPUTS_AT_ONCE)), weight.bits) for at in parts]
            words = torch.cat(packed, dim=1)
        self.symmetric = weight.symmetric
        self.bits = weight.bits
        self.no_order = _no_order(marlin_utils, words.device)
        repacked = ops.gptq_marlin_repack(words, *self.no_order[:1], inputs, outputs, weight.bits)
        self.register_buffer("words", repacked)
        scales = weight.scales.to(dtype).contiguous()
        self.register_buffer(
            "scales", marlin_utils.marlin_permute_scales(scales, inputs, outputs, weight.group_size)
        )
        if self.symmetric:
            zeros = words.new_empty(0)
        else:
            groups = weight.zeros.shape[0]
            zeros = marlin_utils.marlin_zero_points(weight.zeros.int(), groups, outputs, weight.bits)
        self.register_buffer("zeros", zeros)
        workspace = marlin_utils.marlin_make_workspace_new(words.device, BLOCKS_PER_MULTIPROCESSOR)
        self.register_buffer("workspace", workspace)

    @classmethod
    def refuses(cls, bits: int, device: torch.device, dtype: torch.dtype) -> str | None:
        if importlib.util.find_spec("vllm") is None:
            return "vllm is not installed"
        if dtype not in (torch.float16, torch.bfloat16):
            return f"takes float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
        from vllm.model_executor.layers.quantization.utils import marlin_utils

        supported = marlin_utils.query_marlin_supported_quant_types(has_zp=False)
        if _scalar_type(bits, symmetric=True) not in supported:
            return f"this GPU does not run it with {bits} bits"
        return None

    @classmethod
    def refuses_weight(cls, weight: QuantizedWeight) -> str | None:
        from vllm.model_executor.layers.quantization.utils import marlin_utils

        supported = marlin_utils.query_marlin_supported_quant_types(has_zp=not weight.symmetric)
        if _scalar_type(weight.bits, weight.symmetric) not in supported:
            return f"{weight.bits} bits with zero points are not supported"
        fits, reason = marlin_utils.check_marlin_supports_shape(
            weight.outputs, weight.inputs, weight.inputs, weight.group_size
        )
        return None if fits else str(reason)

    def multiply(self, x: Tensor) -> Tensor:
        from vllm.model_executor.layers.quantization.utils import marlin_utils

        order: dict[str, Any] = {}
        if self.no_order:
            g_idx, indices = self.no_order
            order = {"g_idx": g_idx, "g_idx_sort_indices": indices, "is_k_full": True}
        y: Tensor = marlin_utils.apply_gptq_marlin_linear(
            input=x,
            weight=self.words,
            weight_scale=self.scales,
            weight_zp=self.zeros,
            workspace=self.workspace,
            wtype=_scalar_type(self.bits, self.symmetric),
            output_size_per_partition=self.outputs,
            input_size_per_partition=self.inputs,
            **order,
        )
        return y


def _no_order(marlin_utils: Any, device: torch.device) -> tuple[Tensor, ...]:
    """Two empty orders where this vLLM wants them, else nothing."""
    make = getattr(marlin_utils, "marlin_make_empty_g_idx", None)
    return () if make is None else (make(device), make(device))


def _scalar_type(bits: int, symmetric: bool) -> Any:
    from vllm.scalar_type import scalar_types

    if symmetric:
        return {4: scalar_types.uint4b8, 8: scalar_types.uint8b128}[bits]
    return {4: scalar_types.uint4, 8: scalar_types.uint8}[bits]
