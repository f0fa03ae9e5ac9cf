"""The seam between the models and the attention kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from server.layers.rotary import Rotary
from server.layers.spec import AttentionSpec
from server.ops.capabilities import Capabilities


@dataclass(slots=True)
class ChunkSpan:
    """A run of consecutive tokens of one sequence.

    Attributes:
        begin, end: its rows in the step's tokens.
        start: tokens of the sequence before it, all in the cache.
        blocks: int64 [n], cache blocks that hold its first ``start + end - begin`` tokens.
    """

    begin: int
    end: int
    start: int
    blocks: Tensor


@dataclass(slots=True)
class AttentionBatch:
    """Which token of a step sits where: the same for every layer.

    The tokens are those of the decodes, one each, then those of the chunks. Several decodes may be of
    one sequence, at consecutive positions (drafts): each attends to the ones before it.

    Attributes:
        positions: int64 [tokens], place of each token in its sequence.
        slot_blocks, slot_offsets: int64 [tokens], where each token's key and value are stored.
        decode_lengths: int64 [decodes] on the host, tokens to attend to (the new one included).
        decode_tables: int64 [decodes, blocks], cache blocks of each decode; unused entries valid.
        chunks: the chunks in order.
    """

    positions: Tensor
    slot_blocks: Tensor
    slot_offsets: Tensor
    decode_lengths: np.ndarray
    decode_tables: Tensor
    chunks: list[ChunkSpan]

    @property
    def num_decodes(self) -> int:
        return len(self.decode_lengths)


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a backend is made for.

    Attributes:
        layers: what each layer of its cache is, in order; heads are of the same sizes in all of them.
        block_size: tokens a cache block.
        dtype: of queries and, unless it is in FP8, of the cache.
        cache_scales: of a cache in FP8, float32 [layers, 2, kv_heads]: what its keys, then its values are
            multiplied by.
    """

    layers: tuple[AttentionSpec, ...]
    block_size: int
    dtype: torch.dtype
    cache_scales: Tensor | None = None

    @property
    def num_heads(self) -> int:
        return self.layers[0].num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.layers[0].num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.layers[0].head_dim


BatchT = TypeVar("BatchT")
"""The batch of a step: `AttentionBatch`, or `paged.PagedBatch`."""


class AttentionBackend(ABC, Generic[BatchT]):
    """Attention over the paged cache, for decodes and chunks in one call.

    Args:
        shape: the layers, and sizes of the cache.
        rotaries: cosines and sines of every position, for each rotary embedding that layers name by index.
        cache: [blocks, layers, 2, block_size, kv_heads, head_dim], keys then values.

    Attributes:
        positions: [tokens], integers: place of each token of the batch in its sequence; of padding, any.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    positions: Tensor
    chunks_like_decodes: bool = False
    """Whether a token has the same bits computed in a chunk, of any borders, as computed as a decode."""

    def __init__(self, shape: AttentionShape, rotaries: Sequence[Rotary], cache: Tensor) -> None:
        self.shape = shape
        self.rotaries = tuple(rotaries)
        self.cache = cache

    @property
    def groups(self) -> tuple[AttentionBackend[Any], ...]:
        """The backends of the groups of layers, each with a cache of its own; here one has all layers."""
        return (self,)

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """(group, place in the group) of each layer of the model."""
        return tuple((0, index) for index in range(len(self.shape.layers)))

    @classmethod
    def check_library(cls) -> None:
        """Raise ImportError, which says why, where a library that it calls cannot be used."""

    @abstractmethod
    def prepare(self, batch: BatchT) -> None:
        """Take the batch of the next forward pass; called once before its first layer."""

    @abstractmethod
    def forward(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Rotate queries and keys, store keys and values of all tokens, then attend.

        Args:
            layer: index of the layer.
            query: [tokens, heads, head_dim].
            key: [tokens, kv_heads, head_dim].
            value: [tokens, kv_heads, head_dim].
            sinks: [heads], where the layer has them (`AttentionSpec.sinks`).
            out: [tokens, heads × head_dim], contiguous, takes the result instead of new memory.

        Returns:
            [tokens, heads × head_dim].
        """
