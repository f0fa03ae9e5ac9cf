"""Paged attention by this project's own Triton kernels: for GPUs, without any extra package."""

from __future__ import annotations

import torch
from torch import Tensor

from server.continuous_batching.attention.base import AttentionShape
from server.continuous_batching.attention.paged import Chunks, PagedAttention
from server.continuous_batching.attention.triton_decode import DecodeAttention
from server.continuous_batching.attention.triton_prefill import chunk_attention
from server.continuous_batching.attention.triton_rotary import rotate_and_store
from server.continuous_batching.layers.rotary import Rotary


class TritonAttention(PagedAttention):
    """Decodes in one kernel; chunks in two, rotation with cache write and tiled attention."""

    name = "triton"

    def __init__(self, shape: AttentionShape, rotary: Rotary, cache: Tensor) -> None:
        super().__init__(shape, rotary, cache)
        self._attend_decodes = DecodeAttention(rotary, cache)

    def forward(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, count = self.batch, self.batch.num_decodes
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if count:
            self._attend_decodes(layer, batch, query[:count], key[:count], value[:count], output[:count])
        if batch.chunks is not None:
            rotate_and_store(query, key, value, self.rotary, self.cache, layer, batch)
            self._attend_chunks(layer, query, batch.chunks, output)
        return output.flatten(1)

    def _attend_chunks(self, layer: int, query: Tensor, chunks: Chunks, output: Tensor) -> None:
        """Fill the rows of `output` behind those of the decodes."""
        chunk_attention(query, self.cache, layer, self.batch, output)
