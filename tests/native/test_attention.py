"""Paged attention against softmax(Q Kᵀ / √d) V in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from server.continuous_batching.attention.base import AttentionBatch, AttentionShape, ChunkSpan
from server.continuous_batching.attention.native_attention import NativeAttention
from server.continuous_batching.native.library import NativeLibrary

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
    """New tokens of each; the decodes (1) come first."""
    num_decodes: int

    def __post_init__(self) -> None:
        size = self.shape.block_size
        counts = [-(-length // size) for length in self.lengths]
        order = torch.randperm(sum(counts) + 5)[: sum(counts)]  # blocks of a sequence lie anywhere
        self.tables = list(torch.split(order, counts))
        self.cache = torch.randn(
            sum(counts) + 5, LAYERS, 2, size, self.shape.num_kv_heads, self.shape.head_dim
        ).to(self.shape.dtype)
        self.places = [
            torch.arange(length - new, length) for length, new in zip(self.lengths, self.fresh, strict=True)
        ]

    def batch(self) -> AttentionBatch:
        size, decodes = self.shape.block_size, self.num_decodes
        positions = torch.cat(self.places)
        blocks = torch.cat([t[p // size] for t, p in zip(self.tables, self.places, strict=True)])
        width = max((len(t) for t in self.tables[:decodes]), default=0)
        decode_tables = torch.zeros(decodes, width, dtype=torch.long)
        for row, table in enumerate(self.tables[:decodes]):
            decode_tables[row, : len(table)] = table
        chunks, begin = [], decodes
        for table, length, new in list(zip(self.tables, self.lengths, self.fresh, strict=True))[decodes:]:
            chunks.append(ChunkSpan(begin, begin + new, length - new, table.clone()))
            begin += new
        lengths = np.array(self.lengths[:decodes], np.int64)
        return AttentionBatch(positions, blocks, positions % size, lengths, decode_tables, chunks)

    def expected(self, query: Tensor, key: Tensor, value: Tensor, angles: Angles) -> Tensor:
        """[tokens, heads × head_dim] in float64; writes the new keys and values to the cache."""
        rows, begin = [], 0
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
            scores = torch.einsum("qhd,khd->hqk", turned_query, keys) / self.shape.head_dim**0.5
            seen = torch.arange(len(history)) <= places[:, None]
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            rows.append(torch.einsum("hqk,khd->qhd", weights, values).flatten(1))
        return torch.cat(rows)


def rotated(x: Tensor, angles: Angles, places: Tensor) -> Tensor:
    x, half = x.double(), x.shape[-1] // 2
    cos, sin = angles.cos[places, None].double(), angles.sin[places, None].double()
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def check(library: NativeLibrary, scene: Scene, tolerance: float) -> None:
    shape = scene.shape
    angles = random_angles(shape.head_dim)
    tokens = sum(scene.fresh)
    query = torch.randn(tokens, shape.num_heads, shape.head_dim)
    key, value = (torch.randn(tokens, shape.num_kv_heads, shape.head_dim) for _ in range(2))
    expected = scene.expected(query, key, value, angles)
    before = scene.cache.clone()
    backend = NativeAttention(shape, angles, scene.cache, library)
    batch = scene.batch()
    backend.prepare(batch)
    found = backend.forward(LAYER, query, key, value)
    assert (found.double() - expected).abs().max() < tolerance
    stored = scene.cache[batch.slot_blocks, LAYER, 1, batch.slot_offsets]
    assert torch.equal(stored, value.to(shape.dtype))
    scene.cache[batch.slot_blocks, LAYER, :, batch.slot_offsets] = before[
        batch.slot_blocks, LAYER, :, batch.slot_offsets
    ]
    assert torch.equal(scene.cache, before), "something else than the new slots was written"


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=["f32", "bf16"]
)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"),
    [(12, 4, 64, 16), (4, 2, 16, 8), (14, 2, 64, 16), (4, 4, 128, 32), (8, 1, 80, 7), (5, 1, 96, 1)],
)
def test_decodes_and_spans_of_every_shape(
    library: NativeLibrary,
    dtype: torch.dtype,
    tolerance: float,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
) -> None:
    torch.manual_seed(heads * head_dim)
    shape = AttentionShape(heads, kv_heads, head_dim, block_size, dtype)
    decodes = [1, 2, 15, 16, 17, 63, 64, 65, 129, 300]
    prompts = [(1, 1), (16, 16), (33, 33), (129, 129), (200, 3), (310, 150), (257, 1)]
    lengths = decodes + [length for length, _ in prompts]
    fresh = [1] * len(decodes) + [new for _, new in prompts]
    check(library, Scene(shape, lengths, fresh, len(decodes)), tolerance)


@pytest.mark.parametrize(("lengths", "decodes"), [([40, 41], 2), ([300], 0)])
def test_decodes_alone_and_a_prompt_alone(library: NativeLibrary, lengths: list[int], decodes: int) -> None:
    torch.manual_seed(1)
    shape = AttentionShape(6, 2, 32, 16, torch.float32)
    fresh = [1] * decodes if decodes else lengths
    check(library, Scene(shape, lengths, fresh, decodes), 2e-5)


def test_scores_far_apart_do_not_overflow(library: NativeLibrary) -> None:
    """Softmax over scores of thousands is that of its largest."""
    torch.manual_seed(2)
    shape = AttentionShape(4, 2, 64, 16, torch.float32)
    scene = Scene(shape, [200, 190], [1, 190], 1)
    scene.cache *= 300.0
    check(library, scene, 2e-2)
