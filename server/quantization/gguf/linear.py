"""A linear layer whose weights are blocks of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Self

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize
from torch import Tensor, nn
from torch.nn import functional

from server.layers.codes import CodesForm, CodesMatrix, SmallCodes
from server.quantization.gguf.codes import FORMS, block_size, codes_of
from server.quantization.gptq.memory import return_freed_pages
from server.quantization.linear import QuantizedLinear, dequantized


class GGUFLinear(QuantizedLinear):
    """``y = x Wᵀ + b`` for one or several projections of the same input.

    It holds their blocks as the file does, for kernels that multiply with the codes; where there are
    none, `pack` makes floats of them, and it multiplies with these.

    Args:
        kinds: types of the projections, by ggml's names.
        inputs: features of x.
        outputs: features of each projection.
        biased: whether each projection has a bias; without one it has zeros beside others that have.
    """

    format_name = "gguf"

    def __init__(
        self,
        kinds: Sequence[str],
        inputs: int,
        outputs: Sequence[int],
        biased: Sequence[bool],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.kinds, self.inputs, self.outputs = tuple(kinds), inputs, list(outputs)
        self._biased = tuple(biased)
        for index, (kind, size) in enumerate(zip(kinds, outputs, strict=True)):
            block, width = block_size(kind)
            empty = torch.empty(size, inputs // block * width, dtype=torch.uint8, device=device)
            self.register_buffer(f"blocks_{index}", empty)
        self.bias: Tensor | None
        bias = torch.zeros(sum(outputs), dtype=dtype, device=device) if any(biased) else None
        self.register_buffer("bias", bias)

    @property
    def blocks(self) -> list[Tensor]:
        """Of each projection, as long as the layer has them."""
        return [self.get_buffer(f"blocks_{index}") for index in range(len(self.kinds))]

    def weights(self, *names: str) -> dict[str, Tensor]:
        """Name of a projection's blocks or bias → the tensor to copy it into."""
        found = {f"{name}.weight": blocks for name, blocks in zip(names, self.blocks, strict=True)}
        if self.bias is not None:
            parts = zip(names, torch.split(self.bias, self.outputs), self._biased, strict=True)
            found |= {f"{name}.bias": part for name, part, biased in parts if biased}
        return found

    def objection_to_codes(self) -> str | None:
        return None

    def _runs(self) -> Iterator[tuple[str, list[Tensor]]]:
        """(type, blocks) of neighbouring projections that have one type."""
        for kind, pairs in groupby(zip(self.kinds, self.blocks, strict=True), key=lambda pair: pair[0]):
            yield kind, [blocks for _, blocks in pairs]

    def codes_forms(self) -> Sequence[tuple[CodesForm, int, int]]:
        return [(FORMS[kind], sum(map(len, blocks)), self.inputs) for kind, blocks in self._runs()]

    def small_codes(self) -> Iterator[CodesMatrix]:
        for kind, blocks in self._runs():
            rows = torch.cat(blocks)
            yield CodesMatrix(FORMS[kind], len(rows), partial(_take, kind, rows))

    def release(self) -> None:
        for index in range(len(self.kinds)):
            self.register_buffer(f"blocks_{index}", None)
        return_freed_pages()

    @classmethod
    def pack(cls, layers: Sequence[Self], dtype: torch.dtype, device: torch.device) -> dict[str, str]:
        """Make floats of the blocks of all layers, one after the other."""
        kinds = ", ".join(dict.fromkeys(kind for layer in layers for kind in layer.kinds))
        for layer in layers:
            layer.become_floats(dtype, device)
        return dequantized(f"{kinds} (GGUF)", dtype, "own C++ kernels do not compute this model here")

    def become_floats(self, dtype: torch.dtype, device: torch.device) -> None:
        """Hold the weight as floats of `dtype`, rounded once."""
        parts = []
        for kind, blocks in zip(self.kinds, self.blocks, strict=True):
            floats = dequantize(blocks.numpy(), GGMLQuantizationType[kind])
            parts.append(torch.from_numpy(np.require(floats, np.float32, ["C", "W"])).to(dtype))
        self.weight = nn.Parameter(torch.cat(parts).to(device), requires_grad=False)
        self.dense = True
        self.release()

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


def _take(kind: str, rows: Tensor, outputs: Tensor) -> SmallCodes:
    return codes_of(kind, rows[outputs])
