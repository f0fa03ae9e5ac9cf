"""FlashAttention-3 (Shah et al., 2024) through vLLM's build of it, for Hopper GPUs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from server.layers.rotary import Rotary
from server.ops.attention import AttentionShape
from server.ops.paged_attention import Chunks, PagedBatch
from server.ops.triton.attention import TritonAttention

_LEFT_ALONE = {
    "k_new": None, "v_new": None, "q_v": None, "cu_seqlens_k": None, "cu_seqlens_k_new": None,
    "seqused_q": None, "kv_batch_idx": None, "leftpad_k": None,
    "rotary_cos": None, "rotary_sin": None, "seqlens_rotary": None, "is_rotary_interleaved": True,
    "q_descale": None, "k_descale": None, "v_descale": None,
    "window_size_right": -1,
    "scheduler_metadata": None, "num_splits": 0, "pack_gqa": None, "sm_margin": 0, "s_aux": None,
    "cp_world_size": 1, "cp_rank": 0, "cp_tot_seqused_k": None,
}  # fmt: skip
"""Arguments of the operator for what is not used here (it has no defaults itself)."""
_USED = {
    "q", "k", "v", "out", "cu_seqlens_q", "seqused_k", "max_seqlen_q", "max_seqlen_k", "page_table",
    "softmax_scale", "is_causal", "window_size_left", "softcap",
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
    capabilities = replace(
        TritonAttention.capabilities,
        features=TritonAttention.capabilities.features - {"sinks"},  # it takes them in bfloat16 only
        dtypes=frozenset((torch.float16, torch.bfloat16)),
        float8_cache=False,
    )
    _tables: Tensor

    @classmethod
    def check_library(cls) -> None:
        flash_attention()

    def __init__(self, shape: AttentionShape, rotaries: Sequence[Rotary], cache: Tensor) -> None:
        super().__init__(shape, rotaries, cache)
        self._operator = flash_attention()

    def prepare(self, batch: PagedBatch) -> None:
        super().prepare(batch)
        if batch.chunks is not None:
            self._tables = self._chunk_tables()

    def _attend_chunks(
        self, layer: int, query: Tensor, chunks: Chunks, output: Tensor, sinks: Tensor | None
    ) -> None:
        first, spec = self.batch.num_decodes, self.shape.layers[layer]
        keys, values = self.cache[:, layer].unbind(1)
        self._operator(
            q=query[first:], k=keys, v=values, out=output[first:], page_table=self._tables,
            cu_seqlens_q=chunks.bounds, max_seqlen_q=chunks.longest,
            seqused_k=chunks.lengths, max_seqlen_k=chunks.longest_context,
            softmax_scale=spec.scale, is_causal=True, softcap=spec.softcap or 0.0,
            window_size_left=-1 if spec.window is None else spec.window - 1, **_LEFT_ALONE,
        )  # fmt: skip
