"""torch's own FlashAttention-2, `torch.nn.attention.varlen`, which walks block tables from torch 2.12 on.

For GPUs that FlashAttention-3 is not made for. Chosen by name only: it has not been measured here yet.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from server.layers.rotary import Rotary
from server.ops.attention import AttentionShape
from server.ops.paged_attention import Chunks, PagedBatch
from server.ops.triton.attention import TritonAttention

_USED = {"scale", "window_size", "enable_gqa", "seqused_k", "block_table", "num_splits"}
_BLOCK_MULTIPLE = 256


def varlen_attention() -> Callable[..., Any]:
    """The function.

    Raises:
        ImportError: this torch has none that walks block tables.
    """
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
    capabilities = replace(
        TritonAttention.capabilities,
        features=TritonAttention.capabilities.features - {"softcap", "sinks"},
        dtypes=frozenset((torch.float16, torch.bfloat16)),
        float8_cache=False,
        head_multiple=8,
        block_multiple=_BLOCK_MULTIPLE,
    )
    _tables: Tensor
    _key_bounds: Tensor
    """int32 [chunks + 1], sums of the contexts' lengths: asked for, though the tables say where keys are."""

    @classmethod
    def check_library(cls) -> None:
        varlen_attention()

    def __init__(self, shape: AttentionShape, rotaries: Sequence[Rotary], cache: Tensor) -> None:
        super().__init__(shape, rotaries, cache)
        self._attend = varlen_attention()

    def prepare(self, batch: PagedBatch) -> None:
        super().prepare(batch)
        if batch.chunks is not None:
            self._tables = self._chunk_tables()
            self._key_bounds = functional.pad(batch.chunks.lengths.cumsum(0, dtype=torch.int32), (1, 0))

    def _attend_chunks(
        self, layer: int, query: Tensor, chunks: Chunks, output: Tensor, sinks: Tensor | None
    ) -> None:
        first, spec = self.batch.num_decodes, self.shape.layers[layer]
        # keys before a query (-1: all), and none behind it; a chunk's last query sees the context's last key
        window = (-1 if spec.window is None else spec.window - 1, 0)
        keys, values = self.cache[:, layer].unbind(1)
        # one split: a chunk has queries enough to fill the machine
        output[first:] = self._attend(
            query[first:], keys, values, chunks.bounds, self._key_bounds, chunks.longest,
            chunks.longest_context, scale=spec.scale, window_size=window, enable_gqa=True,
            seqused_k=chunks.lengths, block_table=self._tables, num_splits=1,
        )  # fmt: skip
