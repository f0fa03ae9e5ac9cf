"""Attention of decodes, over a cache of random numbers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.checkpoints import LlamaShape
from server.layers.rotary import Rotary
from server.layers.spec import AttentionSpec, RotarySpec
from server.ops.paged_attention import PagedBatch, SharedPrefixes
from server.ops.triton.decode_attention import DecodeAttention, Tuning

DEVICE = torch.device("cuda")


class DecodeScene:
    """The attention of some layers for decodes of one length, each with blocks of its own.

    It is launched as engines do: queries and keys are rotated, several decodes ask whether they share a
    prefix.

    Args:
        sizes: of the model.
        count: decodes.
        length: tokens before the new one of each.
        layers: how many.
        float8: the cache is in FP8.

    Attributes:
        attention: of all layers; its tuning may be changed.
        batch: the step, which may be changed.
        elements: of the keys of a token.
    """

    LAYERS: ClassVar[int] = 4
    ROOM: ClassVar[int] = 4_096
    """Tokens that block tables have room for: how many programs there are follows it."""

    def __init__(
        self, sizes: LlamaShape, count: int, length: int, *, layers: int = LAYERS, float8: bool = False
    ) -> None:
        dim, width = sizes.hidden // sizes.heads, length // 16 + 2
        tables = torch.zeros((count, max(width, self.ROOM // 16)), dtype=torch.int32, device=DEVICE)
        tables[:, :width] = torch.randperm(count * width, device=DEVICE).view(count, width)
        positions = torch.full((count,), length, dtype=torch.int32, device=DEVICE)
        rows = torch.arange(count, dtype=torch.int32, device=DEVICE)
        shared = SharedPrefixes(torch.zeros_like(rows), torch.ones_like(rows)) if count > 1 else None
        self.batch = PagedBatch(count, rows, positions, tables, shared=shared)
        self.elements = sizes.kv_heads * dim
        self._spec = AttentionSpec(sizes.heads, sizes.kv_heads, dim, dim, dim**-0.5, rotary=0)
        rotary = RotarySpec(10_000.0, dim)
        self._rotary = Rotary(rotary, length + 1, dtype=torch.bfloat16, device=DEVICE)
        self._query = torch.randn(count, sizes.heads, dim, device=DEVICE, dtype=torch.bfloat16)
        self._new = torch.randn(2, count, sizes.kv_heads, dim, device=DEVICE, dtype=torch.bfloat16)
        room = (count * width, layers, 2, 16, sizes.kv_heads, dim)
        cache = torch.randn(room, device=DEVICE, dtype=torch.bfloat16)
        scales = torch.ones(layers, 2, sizes.kv_heads, device=DEVICE) if float8 else None
        self.attention = DecodeAttention(cache.to(torch.float8_e4m3fn) if float8 else cache, scales)

    def launch(self, tuning: Tuning | None = None) -> Tensor:
        """Attend in every layer, as divided by `tuning`; what the last one attended to."""
        self.attention.tuning = tuning
        output = torch.empty_like(self._query)
        for layer in range(self.LAYERS):
            self.attend(layer, self._query, *self._new, output)
        return output

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        """As `DecodeAttention` does."""
        self.attention(layer, self._spec, self._rotary, self.batch, query, key, value, output)
