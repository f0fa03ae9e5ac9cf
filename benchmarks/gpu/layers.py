"""The layers of a step of decodes, in a row as a model has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.checkpoints import LlamaShape
from benchmarks.gpu.decode_scene import DEVICE, DecodeScene
from benchmarks.gpu.products import products

FLOATS: dict[str, Any] = {"device": DEVICE, "dtype": torch.bfloat16}


class Layers:
    """Layers of random weights, 8 GB at most, and decodes behind their contexts.

    Args:
        sizes: of the model.
        rows: decodes.
        longest: tokens before the new one of a decode, at most.
        most: layers.

    Attributes:
        count: layers.
        products: of a layer.
        weights: of each layer, by product.
        norm: ones, [hidden].
        x: [rows, hidden], what goes in.
        scene: attention.
    """

    def __init__(self, sizes: LlamaShape, rows: int, longest: int, most: int) -> None:
        room = int(8e9 // (sizes.bytes_per_token / sizes.layers))
        self.count = min(sizes.layers, room, most)
        self.products = products(sizes)[:-1]
        self.weights = [
            {each.name: 0.02 * torch.randn(each.size, each.inputs, **FLOATS) for each in self.products}
            for _ in range(self.count)
        ]
        dim = sizes.hidden // sizes.heads
        self._heads = (sizes.heads, dim), (sizes.kv_heads, dim), (sizes.kv_heads, dim)
        self.scene = DecodeScene(sizes, rows, longest, layers=self.count)
        self.norm = torch.ones(sizes.hidden, **FLOATS)
        self.x = torch.randn(rows, sizes.hidden, **FLOATS)

    def place(self, lengths: Sequence[int]) -> None:
        """Let so many tokens stand before the new one of each decode, the most first."""
        self.scene.batch.positions.copy_(torch.tensor(lengths, dtype=torch.int32))

    def attended(self, number: int, qkv: Tensor) -> Tensor:
        """[rows, heads × head_dim]: what the queries of a layer find."""
        parts = qkv.split([heads * dim for heads, dim in self._heads], 1)
        query, *new = (part.unflatten(1, heads) for part, heads in zip(parts, self._heads, strict=True))
        found = torch.empty(query.shape, **FLOATS)
        self.scene.attend(number, query, *new, found)
        return found.flatten(1)
