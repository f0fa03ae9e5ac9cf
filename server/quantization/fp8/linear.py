"""Layers whose weights stay in FP8.

One row is multiplied in float32 with weights that are read as FP8. Of more, the rows are quantized as the
checkpoint says, and FP8 units multiply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from server.layers.linear import empty_parameter
from server.quantization.fp8.product import pays, product
from server.quantization.fp8.rows import FLOAT8, Rows, RowScales, quantize
from server.quantization.fp8.scheme import BLOCK, Activations
from server.quantization.gemv import gemv
from server.quantization.linear import QuantizedLinear


class Float8Linear(QuantizedLinear):
    """``y = x Wᵀ + b`` for one or several projections of the same input.

    Args:
        inputs: features of x.
        outputs: features of each projection.
        bias: whether the projections have one.
        activations: how x is quantized.
        dtype: of x, bias and y.
    """

    format_name = "fp8"
    axes: ClassVar[Mapping[str, tuple[int | None, int | None]]] = {
        "weight": (0, 1),
        "weight_scale": (0, None),
        "input_scale": (None, None),
        "bias": (0, None),
    }
    block: int | None = None
    """Outputs and inputs that share a scale; None: each output has one."""
    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor | None

    def __init__(
        self, inputs: int, outputs: Sequence[int], *, bias: bool, activations: Activations,
        dtype: torch.dtype, device: torch.device,
    ) -> None:  # fmt: skip
        super().__init__()
        self.outputs = list(outputs)
        rows = sum(outputs)
        self.register_buffer("weight", torch.zeros(rows, inputs, dtype=FLOAT8, device=device))
        self.register_buffer("weight_scale", torch.zeros(self._scale_shape(rows, inputs), device=device))
        static = torch.zeros(len(self.outputs), device=device) if activations.static else None
        self.register_buffer("input_scale", static)
        self.bias = empty_parameter(rows, dtype=dtype, device=device) if bias else None
        self.row_scales = RowScales(self.block, None, activations.ceiling or 0.0)

    @classmethod
    def _scale_shape(cls, rows: int, inputs: int) -> tuple[int, int]:
        return rows, 1

    def weights(self, *names: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        scales = [size // (self.block or 1) for size in self.outputs]
        parts = {
            "weight": torch.split(self.weight, self.outputs),
            "weight_scale": torch.split(self.weight_scale, scales),
        }
        if self.input_scale is not None:
            parts["input_scale"] = torch.split(self.input_scale, 1)
        if self.bias is not None:
            parts["bias"] = torch.split(self.bias.data, self.outputs)
        for part, tensors in parts.items():
            found |= {f"{name}.{part}": tensor for name, tensor in zip(names, tensors, strict=True)}
        return found

    @classmethod
    def pack(cls, layers: Sequence[Self], dtype: torch.dtype, device: torch.device) -> dict[str, str]:
        for layer in layers:
            layer.to(device)
            layer.settle()
        way = "an own kernel"
        if cls.block is None:
            way += " for few rows, torch._scaled_mm for many"
        return {
            "name": f"{cls.format_name} ({len(layers)} layers)",
            "reason": f"kept in FP8; one row is multiplied in float32, of more the rows are quantized and "
            f"multiplied by FP8 units ({way})",
        }

    def settle(self) -> None:
        """Take what the loaded scales say: projections that share their rows share the greatest scale."""
        if self.input_scale is not None:
            static = self.input_scale.max().reshape(1)
            self.row_scales = RowScales(self.block, static, self.row_scales.ceiling)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., sum(outputs)], in the type of x."""
        rows = x.reshape(-1, x.shape[-1])
        y = self.single(rows) if len(rows) == 1 else self.multiply(quantize(rows, self.row_scales), x.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])

    def add_to(self, x: Tensor, residual: Tensor) -> Tensor:
        if len(x) == 1:
            return self.single(x, residual=residual)
        return self.multiply(quantize(x, self.row_scales), x.dtype, residual)

    def single(
        self, x: Tensor, *, norm: Tensor | None = None, eps: float = 0.0, gated: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """One row; arguments as of `gemv`."""
        return gemv(
            x.contiguous(), self.weight, self.weight_scale, bias=self.bias, block=self.block,
            norm=norm, eps=eps, gated=gated, residual=residual,
        )  # fmt: skip

    def multiply(self, rows: Rows, dtype: torch.dtype, residual: Tensor | None = None) -> Tensor:
        """[rows, sum(outputs)] of `dtype`, from rows that are quantized by `row_scales`.

        Args:
            residual: contiguous; is added and then holds the result.
        """
        if self.block is not None or pays(len(rows.numbers), len(self.weight)):
            scales, block = self.weight_scale, self.block
            return product(rows, self.weight, scales, self.bias, dtype, block=block, residual=residual)
        y: Tensor = torch._scaled_mm(
            rows.numbers,
            self.weight.t(),
            scale_a=rows.scales,
            scale_b=self.weight_scale.t(),
            bias=self.bias,
            out_dtype=dtype,
            # sums of 14 bits within the units, as in other servers; without it they take twice as long
            use_fast_accum=True,
        )
        return y if residual is None else residual.add_(y)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.outputs}"


class BlockScaledLinear(Float8Linear):
    """A `Float8Linear` with a scale for each block of 128 outputs and inputs; x has one for 128 numbers."""

    block = BLOCK
    axes: ClassVar[Mapping[str, tuple[int | None, int | None]]] = {
        "weight": (0, 1),
        "weight_scale": (0, 1),
        "bias": (0, None),
    }

    @classmethod
    def _scale_shape(cls, rows: int, inputs: int) -> tuple[int, int]:
        return rows // BLOCK, inputs // BLOCK
