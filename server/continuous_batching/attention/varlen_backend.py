"""torch's own FlashAttention-2, `torch.nn.attention.varlen`, which walks block tables from torch 2.12 on.

For GPUs that FlashAttention-3 is not made for. Chosen by name only: nobody has measured it here yet.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from server.continuous_batching.attention.base import AttentionShape
from server.continuous_batching.attention.paged import Chunks, PagedBatch
from server.continuous_batching.attention.triton_backend import TritonAttention
from server.continuous_batching.layers.rotary import Rotary

_USED = {"scale", "window_size", "enable_gqa", "seqused_k", "block_table", "num_splits"}
_CAUSAL = (-1, 0)
"""A window: every key before a query, none behind it; a chunk's last query sees the context's last key."""
_BLOCK_MULTIPLE = 256


def varlen_attention(shape: AttentionShape) -> Callable[..., Any]:
    """The function.

    Raises:
        ImportError: this torch has none that walks block tables, or not those of `shape`.
    """
    if shape.block_size % _BLOCK_MULTIPLE:
        raise ImportError(f"it takes blocks of {_BLOCK_MULTIPLE} tokens, not of {shape.block_size}")
    if shape.head_dim % 8 or shape.head_dim > 256 or shape.dtype == torch.float32:
        raise ImportError(f"it takes no {shape.dtype} heads of {shape.head_dim}")
    from torch.nn.attention.varlen import varlen_attn

    if missing := _USED - inspect.signature(varlen_attn).parameters.keys():
        raise ImportError(f"that of torch {torch.__version__} has no {', '.join(sorted(missing))}")
    if not torch.backends.cuda.is_flash_attention_available():
        raise ImportError("this torch was built without FlashAttention")
    if active := torch.nn.attention.current_flash_attention_impl():
        raise ImportError(f"{active} was activated in place of torch's own FlashAttention 2")
    return varlen_attn


class VarlenAttention(TritonAttention):
    """torch's FlashAttention-2 for chunks, own split-K kernel for decodes."""

    name = "varlen"
    _tables: Tensor
    _key_bounds: Tensor
    """int32 [chunks + 1], sums of the contexts' lengths: asked for, though the tables say where keys are."""

    def __init__(self, shape: AttentionShape, rotary: Rotary, cache: Tensor) -> None:
        super().__init__(shape, rotary, cache)
        self._attend = varlen_attention(shape)

    def prepare(self, batch: PagedBatch) -> None:
        super().prepare(batch)
        if batch.chunks is not None:
            self._tables = batch.chunk_tables(self.shape.block_size)
            self._key_bounds = functional.pad(batch.chunks.lengths.cumsum(0, dtype=torch.int32), (1, 0))

    def _attend_chunks(self, layer: int, query: Tensor, chunks: Chunks, output: Tensor) -> None:
        first = self.batch.num_decodes
        keys, values = self.cache[:, layer].unbind(1)
        # one split: a chunk has queries enough to fill the machine
        output[first:] = self._attend(
            query[first:], keys, values, chunks.bounds, self._key_bounds, chunks.longest,
            chunks.longest_context, scale=self.shape.head_dim**-0.5, window_size=_CAUSAL, enable_gqa=True,
            seqused_k=chunks.lengths, block_table=self._tables, num_splits=1,
        )  # fmt: skip
