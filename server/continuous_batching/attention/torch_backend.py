"""Paged attention from torch's own operations: runs everywhere, and is the reference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from server.continuous_batching.attention.base import AttentionBackend, AttentionBatch, ChunkSpan
from server.continuous_batching.layers.rotary import rotate


class TorchAttention(AttentionBackend[AttentionBatch]):
    """Gathers the blocks of each sequence and runs torch's attention on them.

    Decodes of similar length are padded to a common one and run together.
    """

    name = "torch"
    _batch: AttentionBatch
    _cos: Tensor
    _sin: Tensor
    _buckets: list[tuple[Tensor, Tensor, Tensor]]
    """(rows, block tables, mask) of decodes that run together."""

    def prepare(self, batch: AttentionBatch) -> None:
        self._batch = batch
        self._cos, self._sin = self.rotary.at(batch.positions)
        self._buckets = []
        size, device = self.shape.block_size, self.cache.device
        blocks = -(-batch.decode_lengths // size)
        magnitude = np.frexp(blocks)[1]  # lengths within a factor of two share a bucket
        for bucket in np.unique(magnitude):
            rows = np.flatnonzero(magnitude == bucket)
            width = int(blocks[rows].max())
            index = torch.from_numpy(rows)
            lengths = torch.from_numpy(batch.decode_lengths[rows]).to(device)
            mask = torch.arange(width * size, device=device) < lengths[:, None]
            self._buckets.append(
                (index.to(device), batch.decode_tables[index, :width], mask[:, None, None, :])
            )

    def forward(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, cache = self._batch, self.cache[:, layer]
        query, key = rotate(query, self._cos, self._sin), rotate(key, self._cos, self._sin)
        cache[batch.slot_blocks, 0, batch.slot_offsets] = key
        cache[batch.slot_blocks, 1, batch.slot_offsets] = value
        output = torch.empty_like(query)
        if len(self._buckets) == 1:
            _, tables, mask = self._buckets[0]
            output[: batch.num_decodes] = self._decode(query[: batch.num_decodes], cache, tables, mask)
        else:
            for rows, tables, mask in self._buckets:
                output[rows] = self._decode(query[rows], cache, tables, mask)
        for span in batch.chunks:
            part = slice(span.begin, span.end)
            output[part] = self._chunk(query[part], key[part], value[part], cache, span)
        return output.flatten(1)

    def _decode(self, query: Tensor, cache: Tensor, tables: Tensor, mask: Tensor) -> Tensor:
        """One query token a row: the heads that share a key head become its query positions."""
        rows, heads, head_dim = query.shape
        keys, values = self._gather(cache, 0, tables), self._gather(cache, 1, tables)
        grouped = query.view(rows, self.shape.num_kv_heads, -1, head_dim)
        attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        return attended.reshape(rows, heads, head_dim)

    def _gather(self, cache: Tensor, part: int, tables: Tensor) -> Tensor:
        """[rows, blocks] → keys or values [rows, kv_heads, blocks × block_size, head_dim]."""
        return cache[tables, part].flatten(1, 2).transpose(1, 2)

    def _chunk(self, query: Tensor, key: Tensor, value: Tensor, cache: Tensor, span: ChunkSpan) -> Tensor:
        """Consecutive tokens of one sequence over all of its tokens so far."""
        length, mask = span.end - span.begin, None
        if span.start:
            total = span.start + length
            key = cache[span.blocks, 0].flatten(0, 1)[:total]
            value = cache[span.blocks, 1].flatten(0, 1)[:total]
            mask = torch.ones(length, total, dtype=torch.bool, device=query.device).tril(span.start)
        attended = scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            key.transpose(0, 1)[None],
            value.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.shape.num_heads != self.shape.num_kv_heads,
        )
        return attended[0].transpose(0, 1)
