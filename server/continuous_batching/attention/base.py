"""The seam between the models and the attention kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from server.continuous_batching.layers.rotary import Rotary


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
    """Sizes that a backend is made for."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype


BatchT = TypeVar("BatchT")
"""What a backend is told of a step: `AttentionBatch`, or `paged.PagedBatch`."""


class AttentionBackend(ABC, Generic[BatchT]):
    """Causal attention over the paged cache, for decodes and chunks in one call.

    Args:
        shape: sizes of the model and the cache.
        rotary: cosines and sines of every position.
        cache: [blocks, layers, 2, block_size, kv_heads, head_dim], keys then values.
    """

    name: str

    def __init__(self, shape: AttentionShape, rotary: Rotary, cache: Tensor) -> None:
        self.shape = shape
        self.rotary = rotary
        self.cache = cache

    @abstractmethod
    def prepare(self, batch: BatchT) -> None:
        """Take the batch of the next forward pass; called once before its first layer."""

    @abstractmethod
    def forward(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Rotate queries and keys, store keys and values of all tokens, then attend.

        Args:
            layer: index of the layer.
            query: [tokens, heads, head_dim].
            key: [tokens, kv_heads, head_dim].
            value: [tokens, kv_heads, head_dim].

        Returns:
            [tokens, heads × head_dim].
        """
