"""FlashAttention-3 (Shah et al., 2024) through vLLM's build of it, for Hopper GPUs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from server.continuous_batching.attention.base import AttentionShape
from server.continuous_batching.attention.paged import Chunks, PagedBatch
from server.continuous_batching.attention.triton_backend import TritonAttention
from server.continuous_batching.layers.rotary import Rotary


def flash_attention() -> Callable[..., Tensor]:
    """The function.

    Raises:
        ImportError: vLLM is not installed, or its build does not fit this torch or GPU.
    """
    from vllm.vllm_flash_attn import (
        fa_version_unsupported_reason,
        flash_attn_varlen_func,
        is_fa_version_supported,
    )

    if not is_fa_version_supported(3):
        raise ImportError(f"FlashAttention 3: {fa_version_unsupported_reason(3)}")
    return flash_attn_varlen_func  # type: ignore[no-any-return]


class FlashAttention(TritonAttention):
    """FlashAttention-3 for chunks, own split-K kernel for decodes."""

    name = "flash"
    _attend: Callable[..., Tensor]
    _tables: Tensor
    """int32 [chunks, blocks]: this kernel takes no indirection by row."""

    def __init__(self, shape: AttentionShape, rotary: Rotary, cache: Tensor) -> None:
        super().__init__(shape, rotary, cache)
        self._attend = flash_attention()

    def prepare(self, batch: PagedBatch) -> None:
        super().prepare(batch)
        if batch.chunks is not None:
            width = -(-batch.chunks.longest_context // self.shape.block_size)
            self._tables = batch.tables[:, :width].index_select(0, batch.chunks.rows)

    def _attend_chunks(self, layer: int, query: Tensor, chunks: Chunks, output: Tensor) -> None:
        first = self.batch.num_decodes
        keys, values = self.cache[:, layer].unbind(1)
        self._attend(
            query[first:], keys, values,
            max_seqlen_q=chunks.longest, cu_seqlens_q=chunks.bounds,
            max_seqlen_k=chunks.longest_context, seqused_k=chunks.lengths,
            block_table=self._tables, causal=True, fa_version=3, out=output[first:],
        )  # fmt: skip
