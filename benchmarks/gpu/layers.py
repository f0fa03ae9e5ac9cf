"""The layers of a step of decodes, one after the other as in a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.checkpoints import LlamaShape
from benchmarks.gpu.decode_scene import DEVICE, DecodeScene
from benchmarks.gpu.products import Product, products
from server.layers.linear import Linear
from server.layers.norm import RMSNorm
from server.layers.spec import NormSpec

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
        linears: of each layer, by the name of the product.
        norm: of ones, for all layers.
        x: [rows, hidden], what goes in.
        scene: attention.
    """

    def __init__(self, sizes: LlamaShape, rows: int, longest: int, most: int) -> None:
        room = int(8e9 // (sizes.bytes_per_token / sizes.layers))
        self.count = min(sizes.layers, room, most)
        self.products = products(sizes)[:-1]
        self.linears = [{each.name: _linear(each) for each in self.products} for _ in range(self.count)]
        self.norm = RMSNorm(sizes.hidden, NormSpec(1e-5), **FLOATS)
        torch.nn.init.ones_(self.norm.weight)
        dim = sizes.hidden // sizes.heads
        self._heads = (sizes.heads, dim), (sizes.kv_heads, dim), (sizes.kv_heads, dim)
        self.scene = DecodeScene(sizes, rows, longest, layers=self.count)
        self.x = torch.randn(rows, sizes.hidden, **FLOATS)

    def place(self, lengths: Sequence[int]) -> None:
        """Set the context length of each decode, in tokens, longest first."""
        self.scene.batch.positions.copy_(torch.tensor(lengths, dtype=torch.int32))

    def attended(self, number: int, qkv: Tensor) -> Tensor:
        """[rows, heads × head_dim]: what the queries of a layer find."""
        parts = qkv.split([heads * dim for heads, dim in self._heads], 1)
        query, *new = (part.unflatten(1, heads) for part, heads in zip(parts, self._heads, strict=True))
        found = torch.empty(query.shape, **FLOATS)
        self.scene.attend(number, query, *new, found)
        return found.flatten(1)


def _linear(product: Product) -> Linear:
    linear = Linear(product.inputs, product.size, **FLOATS)
    torch.nn.init.normal_(linear.weight, std=0.02)
    return linear
