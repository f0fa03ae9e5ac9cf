"""Paged attention by this project's own Triton kernels: for GPUs, without any extra package."""

from __future__ import annotations

import torch
from torch import Tensor

from server.continuous_batching.attention.base import AttentionShape
from server.continuous_batching.attention.paged import Chunks, PagedAttention
from server.continuous_batching.attention.triton_decode import SplitDecode
from server.continuous_batching.attention.triton_prefill import chunk_attention
from server.continuous_batching.attention.triton_rotary import rotate_and_store
from server.continuous_batching.layers.rotary import Rotary


class TritonAttention(PagedAttention):
    """Split-K decoding in one kernel; chunks take two: rotation and cache write, then tiled attention."""

    name = "triton"

    def __init__(self, shape: AttentionShape, rotary: Rotary, cache: Tensor) -> None:
        super().__init__(shape, rotary, cache)
        self._decode = SplitDecode(rotary, cache)

    def forward(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch = self.batch
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if count := batch.num_decodes:
            self._decode(layer, batch, query[:count], key[:count], value[:count], output[:count])
        if batch.chunks is not None:
            rotate_and_store(query, key, value, self.rotary, self.cache, layer, batch)
            self._attend_chunks(layer, query, batch.chunks, output)
        return output.flatten(1)

    def _attend_chunks(self, layer: int, query: Tensor, chunks: Chunks, output: Tensor) -> None:
        """Fill the rows of `output` behind those of the decodes."""
        chunk_attention(query, self.cache, layer, self.batch, output)
