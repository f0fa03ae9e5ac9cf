"""Paged attention on CPUs by the C++ kernels of `src/`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from server.layers.rotary import Rotary
from server.ops.attention import AttentionBackend, AttentionBatch, AttentionShape
from server.ops.capabilities import Capabilities
from server.ops.cpu import structs
from server.ops.cpu.describe import Angles, describe_attention, describe_batch
from server.ops.cpu.library import DTYPES, NativeLibrary
from server.ops.cpu.memory import prefer_huge_pages

HEAD_MULTIPLE = 16
"""The kernels take the head dimension in pieces of this size."""


class NativeAttention(AttentionBackend[AttentionBatch]):
    """Reads keys and values where they lie, block by block; blocks before a window are not read.

    Args:
        library: the kernels.

    Attributes:
        layers: how each layer attends, for the kernels.
        batch: the tokens of the step.
    """

    name = "native"
    capabilities = Capabilities(
        frozenset(
            ("window", "softcap", "sinks", "score scale", "no rotary", "several rotaries", "partial rotary")
        ),
        dtypes=frozenset(DTYPES),
        head_multiple=HEAD_MULTIPLE,
    )

    def __init__(
        self, shape: AttentionShape, rotaries: Sequence[Rotary], cache: Tensor, library: NativeLibrary
    ) -> None:
        super().__init__(shape, rotaries, cache)
        prefer_huge_pages(cache)
        self._library = library
        self.chunks_like_decodes = library.computes_chunks_like_decodes(shape.dtype)
        self._angles = [Angles(rotary) for rotary in self.rotaries]
        self.layers = [
            structs.Layer(
                attention=describe_attention(spec),
                rotary=structs.Rotary() if spec.rotary is None else self._angles[spec.rotary].described,
                cache_index=index,
            )
            for index, spec in enumerate(shape.layers)
        ]
        self._kept: tuple[object, ...] = ()
        self.batch = structs.Batch()

    def prepare(self, batch: AttentionBatch) -> None:
        """Note the addresses of the batch's tensors; they are read until the next call."""
        self.positions = batch.positions
        self.batch, spans = describe_batch(batch)
        self._kept = (batch, spans)

    def forward(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        described = self.layers[layer]
        wide = None if sinks is None else sinks.float().contiguous()
        described.attention.sinks = None if wide is None else wide.data_ptr()
        qkv = torch.cat((query.flatten(1), key.flatten(1), value.flatten(1)), dim=1).float()
        attended = self._library.attend(described, self.batch, self.cache, qkv).to(query.dtype)
        return attended if out is None else out.copy_(attended)
