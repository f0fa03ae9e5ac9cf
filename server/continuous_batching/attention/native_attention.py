"""Paged attention on CPUs by the C++ kernels of `native/`."""

from __future__ import annotations

from ctypes import addressof

import torch
from torch import Tensor

from server.continuous_batching.attention.base import AttentionBackend, AttentionBatch, AttentionShape
from server.continuous_batching.layers.rotary import Rotary
from server.continuous_batching.native.library import DTYPES, NativeLibrary
from server.continuous_batching.native.memory import prefer_huge_pages
from server.continuous_batching.native.structs import Batch, OuterWeights, Shape, Span

HEAD_MULTIPLE = 16
"""The kernels take the head dimension in pieces of so many numbers."""


def objection(shape: AttentionShape) -> str | None:
    """Why the kernels cannot serve such a model, or None."""
    if shape.dtype not in DTYPES:
        return f"they compute in float32 and bfloat16, not {str(shape.dtype).removeprefix('torch.')}"
    if shape.head_dim % HEAD_MULTIPLE:
        return f"a head of {shape.head_dim} numbers is no multiple of {HEAD_MULTIPLE}"
    return None


class NativeAttention(AttentionBackend[AttentionBatch]):
    """Reads keys and values where they lie, block by block.

    Args:
        library: the kernels.
    """

    name = "native"

    def __init__(self, shape: AttentionShape, rotary: Rotary, cache: Tensor, library: NativeLibrary) -> None:
        super().__init__(shape, rotary, cache)
        prefer_huge_pages(cache)
        self._library = library
        half = shape.head_dim // 2  # the second half of a head has the same angles
        self.cosine = rotary.cos[:, :half].float().contiguous()
        self.sine = rotary.sin[:, :half].float().contiguous()
        self._angles = OuterWeights(cosine=self.cosine.data_ptr(), sine=self.sine.data_ptr())
        self._shape = Shape(
            layers=cache.shape[1],
            heads=shape.num_heads,
            kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            block_size=shape.block_size,
            threads=torch.get_num_threads(),
        )
        self._kept: tuple[object, ...] = ()
        self.step = Batch()

    def prepare(self, batch: AttentionBatch) -> None:
        """Note the addresses of the batch's tensors; they are read until the next call."""
        chunks = batch.chunks
        spans = (Span * len(chunks))(*(Span(c.begin, c.end, c.start, c.blocks.data_ptr()) for c in chunks))
        self._kept = (batch, spans)
        self.step = Batch(
            num_tokens=len(batch.positions),
            num_decodes=batch.num_decodes,
            num_spans=len(chunks),
            positions=batch.positions.data_ptr(),
            slot_blocks=batch.slot_blocks.data_ptr(),
            slot_offsets=batch.slot_offsets.data_ptr(),
            decode_lengths=batch.decode_lengths.ctypes.data,
            decode_tables=batch.decode_tables.data_ptr(),
            decode_width=batch.decode_tables.shape[1],
            spans=addressof(spans),
        )

    def forward(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        qkv = torch.cat((query.flatten(1), key.flatten(1), value.flatten(1)), dim=1).float()
        out = self._library.attend(self._shape, self.step, self._angles, self.cache, layer, qkv)
        return out.to(query.dtype)
