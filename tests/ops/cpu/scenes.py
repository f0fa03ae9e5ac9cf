"""Steps of the paged attention: which tokens of which sequences are new, all blocks, and what is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from server.ops.attention import AttentionBatch, AttentionShape, ChunkSpan

LAYERS, LAYER = 3, 1
LONGEST = 700


@dataclass
class Angles:
    """Cosines and sines [positions, head_dim] of `Rotary`."""

    cos: Tensor
    sin: Tensor


def random_angles(head_dim: int) -> Angles:
    angles = torch.rand(LONGEST, head_dim // 2) * 6.28
    angles = torch.cat((angles, angles), dim=1)
    return Angles(angles.cos(), angles.sin())


@dataclass
class Scene:
    """A step: which tokens of which sequences are new, and all blocks."""

    shape: AttentionShape
    lengths: list[int]
    """Tokens of each sequence, the new ones included."""
    fresh: list[int]
    """New tokens of each."""
    num_decodes: int
    """The first of the sequences decode: each new token (with drafts there are several) by itself."""
    layers: int = LAYERS

    def __post_init__(self) -> None:
        size = self.shape.block_size
        counts = [-(-length // size) for length in self.lengths]
        order = torch.randperm(sum(counts) + 5)[: sum(counts)]  # blocks of a sequence lie anywhere
        self.tables = list(torch.split(order, counts))
        self.cache = torch.randn(
            sum(counts) + 5, self.layers, 2, size, self.shape.num_kv_heads, self.shape.head_dim
        ).to(self.shape.dtype)
        self.places = [
            torch.arange(length - new, length) for length, new in zip(self.lengths, self.fresh, strict=True)
        ]

    def batch(self) -> AttentionBatch:
        """The step; its tables are copies."""
        size, decodes = self.shape.block_size, self.num_decodes
        positions = torch.cat(self.places)
        blocks = torch.cat([t[p // size] for t, p in zip(self.tables, self.places, strict=True)])
        width = max((len(t) for t in self.tables[:decodes]), default=0)
        decode_tables = torch.zeros(sum(self.fresh[:decodes]), width, dtype=torch.long)
        decode_lengths, chunks, begin = [], [], 0
        for index, (table, places) in enumerate(zip(self.tables, self.places, strict=True)):
            end = begin + len(places)
            if index < decodes:
                decode_tables[begin:end, : len(table)] = table
                decode_lengths += (places + 1).tolist()
            else:
                chunks.append(ChunkSpan(begin, end, int(places[0]), table.clone()))
            begin = end
        lengths = np.array(decode_lengths, np.int64)
        return AttentionBatch(positions, blocks, positions % size, lengths, decode_tables, chunks)

    def forget_before(self, window: int, batch: AttentionBatch) -> None:
        """Make blocks before every window of a sequence unreadable, and spoil what else is before it."""
        size, entries = self.shape.block_size, [*batch.decode_tables, *(c.blocks for c in batch.chunks)]
        rows = iter(entries)
        for index, (table, places) in enumerate(zip(self.tables, self.places, strict=True)):
            first = max(0, int(places[0]) - window + 1)
            self.cache[table[: first // size]] = float("nan")
            self.cache[table[first // size], :, :, : first % size] = float("nan")
            for _ in places if index < self.num_decodes else [0]:
                next(rows)[: first // size] = -(10**9)

    def expected(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        angles: Angles,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """[tokens, heads × head_dim] in float64; the new keys and values take their places."""
        rows, begin, spec = [], 0, self.shape.layers[LAYER]
        group = self.shape.num_heads // self.shape.num_kv_heads
        for table, places in zip(self.tables, self.places, strict=True):
            part = slice(begin, begin + len(places))
            begin += len(places)
            turned_query, turned_key = (rotated(x[part], angles, places) for x in (query, key))
            history = (
                self.cache[table, LAYER].double().transpose(1, 2).flatten(0, 1)
            )  # [slots, 2, heads, dim]
            history[places, 0] = turned_key.to(self.shape.dtype).double()
            history[places, 1] = value[part].to(self.shape.dtype).double()
            keys, values = (history[:, i].repeat_interleave(group, dim=1) for i in (0, 1))
            scores = torch.einsum("qhd,khd->hqk", turned_query, keys) * spec.scale
            if spec.softcap is not None:
                scores = spec.softcap * (scores / spec.softcap).tanh()
            slots = torch.arange(len(history))
            seen = slots <= places[:, None]
            if spec.window is not None:
                seen &= slots > places[:, None] - spec.window
            scores = scores.masked_fill(~seen, float("-inf"))
            if sinks is not None:
                column = sinks.double()[:, None, None].expand(-1, len(places), 1)
                scores = torch.cat((scores, column), dim=-1)
            weights = scores.softmax(-1)[..., : len(history)]
            rows.append(torch.einsum("hqk,khd->qhd", weights, values).flatten(1))
        return torch.cat(rows)


def rotated(x: Tensor, angles: Angles, places: Tensor) -> Tensor:
    x, size = x.double(), angles.cos.shape[-1]
    cos, sin = angles.cos[places, None].double(), angles.sin[places, None].double()
    turned, still = x[..., :size], x[..., size:]
    half = size // 2
    turned = turned * cos + torch.cat((-turned[..., half:], turned[..., :half]), dim=-1) * sin
    return torch.cat((turned, still), dim=-1)
