"""Paged attention by this project's own Triton kernels: for GPUs, without any extra package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from server.layers.rotary import Rotary
from server.ops.attention import AttentionShape
from server.ops.capabilities import Capabilities
from server.ops.paged_attention import Chunks, PagedAttention, PagedBatch
from server.ops.triton.decode_attention import DecodeAttention
from server.ops.triton.fixed_decode import FixedDecodeAttention
from server.ops.triton.prefill_attention import chunk_attention
from server.ops.triton.rotary import rotate_and_store


class TritonAttention(PagedAttention):
    """Decodes in one kernel; chunks in two, rotation with cache write and tiled attention."""

    name = "triton"
    capabilities = Capabilities(
        frozenset(
            ("window", "softcap", "sinks", "score scale", "no rotary", "several rotaries", "partial rotary")
        ),
        smallest_head=16,
        largest_head=256,
        overlaps=True,
        float8_cache=True,
    )
    fixed_order = False
    """Whether a token's bits depend on nothing but its own sequence."""

    def __init__(self, shape: AttentionShape, rotaries: Sequence[Rotary], cache: Tensor) -> None:
        super().__init__(shape, rotaries, cache)
        if self.fixed_order:
            self._attend_decodes: DecodeAttention = FixedDecodeAttention(cache)
        else:
            self._attend_decodes = DecodeAttention(cache, shape.cache_scales)
        self._windows = any(spec.window is not None for spec in shape.layers)

    @property
    def most_sharers(self) -> int:
        # their queries for a key head are to fit in a tile of 16
        queries = self.shape.num_heads // self.shape.num_kv_heads
        return 1 if self.fixed_order else max(16 // queries, 1)

    def _chunk_tables(self) -> Tensor:
        """int32 [chunks, blocks], for operators that may read whole tiles of keys from before a window.

        Entries of blocks that a sequence has given back name a block that exists.
        """
        tables = self.batch.chunk_tables(self.shape.block_size)
        return tables.clamp_(min=0) if self._windows else tables

    def forward(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        batch, count, spec = self.batch, self.batch.num_decodes, self.shape.layers[layer]
        rotary = None if spec.rotary is None else self.rotaries[spec.rotary]
        output = query.new_empty(query.shape) if out is None else out.view(query.shape)
        if batch.chunks is not None and batch.redone:
            self._rotate_and_store(query, key, value, rotary, layer, batch)
        if batch.redone:  # they attend to each other: all of their keys and values are there before
            part = replace(batch, num_decodes=count - batch.redone)  # no slice: each alignment is a kernel
            stored = (query[:count], key[:count], value[:count])
            self._rotate_and_store(*stored, rotary, layer, part, turns=False)
        if count:
            decodes = (query[:count], key[:count], value[:count], output[:count])
            self._attend_decodes(layer, spec, rotary, batch, *decodes, sinks)
        if batch.chunks is not None:
            if not batch.redone:
                self._rotate_and_store(query, key, value, rotary, layer, batch)
            self._attend_chunks(layer, query, batch.chunks, output, sinks)
        return output.flatten(1)

    def _rotate_and_store(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary: Rotary | None,
        layer: int,
        batch: PagedBatch,
        *,
        turns: bool = True,
    ) -> None:
        """Of the chunks; as of `rotate_and_store`."""
        cache, scales, fused = self.cache, self.shape.cache_scales, not self.fixed_order
        rotate_and_store(query, key, value, rotary, cache, layer, batch, scales, fused=fused, turns=turns)

    def _attend_chunks(
        self, layer: int, query: Tensor, chunks: Chunks, output: Tensor, sinks: Tensor | None
    ) -> None:
        """Fill the rows of `output` behind those of the decodes."""
        spec, scales = self.shape.layers[layer], self.shape.cache_scales
        fused = not self.fixed_order
        chunk_attention(query, self.cache, layer, spec, self.batch, output, sinks, scales, fused=fused)


class FixedOrderAttention(TritonAttention):
    """Decodes in pieces of their own sequence, chunks in tiles of it; every sum in one order."""

    fixed_order = True
