"""Paged attention from torch's own operations: runs everywhere, and is the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from server.layers.rotary import rotate
from server.layers.spec import AttentionSpec
from server.ops.attention import AttentionBackend, AttentionBatch, ChunkSpan
from server.ops.capabilities import Capabilities


class _Decodes(NamedTuple):
    """Decodes that run together: rows of the step; their block tables; mask [rows, 1, 1, keys]."""

    rows: Tensor
    tables: Tensor
    mask: Tensor


class _Chunk(NamedTuple):
    """A chunk: the blocks to read; keys of the first of them to leave out; mask [tokens, keys].

    Without a mask the chunk is all there is, and each token sees those before it.
    """

    blocks: Tensor
    skipped: int
    mask: Tensor | None


@dataclass(slots=True)
class _Views:
    """What the tokens of a step see through one window, or without one."""

    decodes: list[_Decodes]
    chunks: list[_Chunk]


class TorchAttention(AttentionBackend[AttentionBatch]):
    """Gathers the blocks of each sequence and runs torch's attention on them.

    Decodes of similar length are padded to a common one and run together. Where a layer has a window, only
    the blocks within it are read.
    """

    name = "torch"
    capabilities = Capabilities(
        frozenset(
            ("window", "softcap", "sinks", "score scale", "no rotary", "several rotaries", "partial rotary")
        )
    )
    _batch: AttentionBatch
    _angles: list[tuple[Tensor, Tensor]]
    _views: dict[int | None, _Views]

    def prepare(self, batch: AttentionBatch) -> None:
        self._batch = batch
        self.positions = batch.positions
        self._angles = [rotary.at(batch.positions) for rotary in self.rotaries]
        self._views = {}
        for window in {spec.window for spec in self.shape.layers}:
            chunks = [self._chunk_view(span, window) for span in batch.chunks]
            self._views[window] = _Views(self._decode_views(window), chunks)

    def _decode_views(self, window: int | None) -> list[_Decodes]:
        batch, size = self._batch, self.shape.block_size
        blocks = -(-batch.decode_lengths // size)
        magnitude = np.frexp(blocks)[1]  # lengths within a factor of two share a bucket
        buckets = [np.flatnonzero(magnitude == each) for each in np.unique(magnitude)]
        return [self._decode_view(rows, int(blocks[rows].max()), window) for rows in buckets]

    def _decode_view(self, rows: np.ndarray, width: int, window: int | None) -> _Decodes:
        """Of the decodes `rows`, whose contexts have at most `width` blocks."""
        size, device = self.shape.block_size, self.cache.device
        index = torch.from_numpy(rows)
        lengths = torch.from_numpy(self._batch.decode_lengths[rows]).to(device)[:, None]
        tables = self._batch.decode_tables[index, :width]
        places = torch.arange(width * size, device=device)[None, :]
        mask = places < lengths
        if window is not None:
            reached = min(-(-window // size) + 1, width)  # it may begin and end within blocks
            begin = (lengths - window).clamp(min=0) // size
            columns = begin + torch.arange(reached, device=device)
            tables = tables.gather(1, columns.clamp(max=width - 1))
            places = (columns[:, :, None] * size + torch.arange(size, device=device)).flatten(1)
            mask = (places < lengths) & (places >= lengths - window)
        return _Decodes(index.to(device), tables, mask[:, None, None, :])

    def _chunk_view(self, span: ChunkSpan, window: int | None) -> _Chunk:
        length, total, size = span.end - span.begin, span.start + span.end - span.begin, self.shape.block_size
        if not span.start and (window is None or length <= window):
            return _Chunk(span.blocks, 0, None)
        begin = 0 if window is None else max(span.start - window + 1, 0)  # what the first token sees
        device = self.cache.device
        places = torch.arange(begin, total, device=device)
        distance = torch.arange(span.start, total, device=device)[:, None] - places
        mask = distance >= 0
        if window is not None:
            mask &= distance < window
        return _Chunk(span.blocks[begin // size :], begin % size, mask)

    def forward(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        batch, cache, spec = self._batch, self.cache[:, layer], self.shape.layers[layer]
        if spec.rotary is not None:
            angles = self._angles[spec.rotary]
            query, key = rotate(query, *angles), rotate(key, *angles)
        cache[batch.slot_blocks, 0, batch.slot_offsets] = key
        cache[batch.slot_blocks, 1, batch.slot_offsets] = value
        output = torch.empty_like(query) if out is None else out.view(query.shape)
        views, count = self._views[spec.window], batch.num_decodes
        if len(views.decodes) == 1:
            output[:count] = self._decode(query[:count], cache, views.decodes[0], spec, sinks)
        else:
            for decodes in views.decodes:
                output[decodes.rows] = self._decode(query[decodes.rows], cache, decodes, spec, sinks)
        for span, view in zip(batch.chunks, views.chunks, strict=True):
            part = slice(span.begin, span.end)
            output[part] = self._chunk(query[part], key[part], value[part], cache, view, spec, sinks)
        return output.flatten(1)

    def _decode(
        self, query: Tensor, cache: Tensor, decodes: _Decodes, spec: AttentionSpec, sinks: Tensor | None
    ) -> Tensor:
        """One query token a row: the heads that share a key head become its query positions."""
        rows, heads, head_dim = query.shape
        keys, values = self._gather(cache, 0, decodes.tables), self._gather(cache, 1, decodes.tables)
        grouped = query.view(rows, spec.num_kv_heads, -1, head_dim)
        if spec.softcap is None and sinks is None:
            attended = scaled_dot_product_attention(
                grouped, keys, values, attn_mask=decodes.mask, scale=spec.scale
            )
        else:
            mask = decodes.mask.unsqueeze(2)
            attended = attend(grouped.unsqueeze(3), keys, values, mask, spec, sinks).squeeze(3)
        return attended.reshape(rows, heads, head_dim)

    def _gather(self, cache: Tensor, part: int, tables: Tensor) -> Tensor:
        """[rows, blocks] → keys or values [rows, kv_heads, blocks × block_size, head_dim]."""
        return cache[tables, part].flatten(1, 2).transpose(1, 2)

    def _chunk(
        self, query: Tensor, key: Tensor, value: Tensor, cache: Tensor,
        view: _Chunk, spec: AttentionSpec, sinks: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Consecutive tokens of one sequence over all of its tokens so far."""
        mask = view.mask
        if mask is not None:
            seen = slice(view.skipped, view.skipped + mask.shape[1])
            key = cache[view.blocks, 0].flatten(0, 1)[seen]
            value = cache[view.blocks, 1].flatten(0, 1)[seen]
        query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
        if spec.softcap is None and sinks is None:
            attended = scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, scale=spec.scale,
                enable_gqa=spec.num_heads != spec.num_kv_heads,
            )  # fmt: skip
        else:
            if mask is None:
                mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
            grouped = query.view(1, spec.num_kv_heads, -1, *query.shape[2:])
            attended = attend(grouped, key, value, mask, spec, sinks).flatten(1, 2)
        return attended[0].transpose(0, 1)


def attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, spec: AttentionSpec, sinks: Tensor | None
) -> Tensor:
    """Attention with capped scores and sinks, step by step in float32.

    Args:
        query: [rows, kv_heads, group, tokens, head_dim], `group` heads share a key head.
        keys, values: [rows, kv_heads, keys, head_dim].
        mask: bool, [rows, 1, 1, tokens, keys] or what broadcasts to it: what each token sees.
        sinks: [heads], a score a head that takes its share of the softmax and stands for no value.

    Returns:
        The shape of `query`.
    """
    scores = query.float() @ keys.float().unsqueeze(2).transpose(-1, -2) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        column = sinks.float().view(1, *query.shape[1:3], 1, 1)
        scores = torch.cat((scores, column.expand(*scores.shape[:-1], 1)), dim=-1)
    weights = scores.softmax(-1)[..., : keys.shape[2]]
    return (weights @ values.float().unsqueeze(2)).to(query.dtype)
