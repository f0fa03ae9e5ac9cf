"""Paged attention by this project's own Triton kernels: for GPUs, without any extra package."""

from __future__ import annotations

import torch
from torch import Tensor

from server.continuous_batching.attention.paged import Chunks, PagedAttention
from server.continuous_batching.attention.triton_decode import decode_attention
from server.continuous_batching.attention.triton_prefill import chunk_attention
from server.continuous_batching.attention.triton_rotary import rotate_and_store


class TritonAttention(PagedAttention):
    """Rotation and cache write in one kernel, split-K decoding, tiled prefill."""

    name = "triton"

    def forward(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch = self.batch
        rotate_and_store(query, key, value, self.rotary, self.cache, layer, batch)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if batch.num_decodes:
            decodes = slice(0, batch.num_decodes)
            decode_attention(query[decodes], self.cache, layer, batch, output[decodes])
        if batch.chunks is not None:
            self._attend_chunks(layer, query, batch.chunks, output)
        return output.flatten(1)

    def _attend_chunks(self, layer: int, query: Tensor, chunks: Chunks, output: Tensor) -> None:
        """Fill the rows of `output` behind those of the decodes."""
        chunk_attention(query, self.cache, layer, self.batch, output)
