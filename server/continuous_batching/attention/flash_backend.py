"""FlashAttention-3 (Shah et al., 2024) through vLLM's build of it, for Hopper GPUs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from server.continuous_batching.attention.base import AttentionShape
from server.continuous_batching.attention.paged import Chunks, PagedBatch
from server.continuous_batching.attention.triton_backend import TritonAttention
from server.continuous_batching.layers.rotary import Rotary

_LEFT_ALONE = {
    "k_new": None, "v_new": None, "q_v": None, "cu_seqlens_k": None, "cu_seqlens_k_new": None,
    "seqused_q": None, "kv_batch_idx": None, "leftpad_k": None,
    "rotary_cos": None, "rotary_sin": None, "seqlens_rotary": None, "is_rotary_interleaved": True,
    "q_descale": None, "k_descale": None, "v_descale": None,
    "window_size_left": -1, "window_size_right": -1, "softcap": 0.0,
    "scheduler_metadata": None, "num_splits": 0, "pack_gqa": None, "sm_margin": 0, "s_aux": None,
    "cp_world_size": 1, "cp_rank": 0, "cp_tot_seqused_k": None,
}  # fmt: skip
"""Arguments of the operator for what is not used here (it has no defaults itself)."""
_USED = {
    "q", "k", "v", "out", "cu_seqlens_q", "seqused_k", "max_seqlen_q", "max_seqlen_k", "page_table",
    "softmax_scale", "is_causal",
}  # fmt: skip


def flash_attention() -> Callable[..., object]:
    """The operator.

    Only its library is loaded: importing vLLM takes ten seconds, of which attention needs nothing.

    Raises:
        ImportError: vLLM is not installed, has no such library, or one that is made for another torch
            or called in another way.
    """
    vllm = importlib.util.find_spec("vllm")
    places = [] if vllm is None else vllm.submodule_search_locations or []
    found = [file for place in places for file in Path(place).glob("vllm_flash_attn/_vllm_fa3_C*.so")]
    if not found:
        raise ImportError("vLLM is not installed" if vllm is None else "this vLLM was built without it")
    try:
        torch.ops.load_library(str(found[0]))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(str(error)) from error
    operator = torch.ops._vllm_fa3_C.fwd.default
    arguments = {argument.name for argument in operator._schema.arguments}
    if arguments != _USED | _LEFT_ALONE.keys():
        unknown = ", ".join(sorted(arguments ^ (_USED | _LEFT_ALONE.keys())))
        raise ImportError(f"it is called in another way than that of vLLM 0.26: {unknown}")
    return operator


class FlashAttention(TritonAttention):
    """FlashAttention-3 for chunks, own split-K kernel for decodes."""

    name = "flash"
    _tables: Tensor

    def __init__(self, shape: AttentionShape, rotary: Rotary, cache: Tensor) -> None:
        super().__init__(shape, rotary, cache)
        self._operator = flash_attention()

    def prepare(self, batch: PagedBatch) -> None:
        super().prepare(batch)
        if batch.chunks is not None:
            self._tables = batch.chunk_tables(self.shape.block_size)

    def _attend_chunks(self, layer: int, query: Tensor, chunks: Chunks, output: Tensor) -> None:
        first = self.batch.num_decodes
        keys, values = self.cache[:, layer].unbind(1)
        self._operator(
            q=query[first:], k=keys, v=values, out=output[first:], page_table=self._tables,
            cu_seqlens_q=chunks.bounds, max_seqlen_q=chunks.longest,
            seqused_k=chunks.lengths, max_seqlen_k=chunks.longest_context,
            softmax_scale=self.shape.head_dim**-0.5, is_causal=True, **_LEFT_ALONE,
        )  # fmt: skip
