"""Decodes by xformers' Triton split-K operator (Flash-Decoding; Dao et al., 2023), prompts by own kernels.

xformers' compiled extensions do not load on today's torch; this operator needs none of them and is called
directly. It reads pages of one tensor of tokens. A block of our cache is ``2 × layers`` such pages, keys and
values of each layer in turn: block tables are multiplied by that, and a layer's tensors begin at its page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.layers.rotary import Rotary
from server.layers.spec import AttentionSpec
from server.ops.attention import AttentionShape
from server.ops.capabilities import Feature
from server.ops.paged_attention import PagedBatch
from server.ops.triton.attention import TritonAttention
from server.ops.triton.rotary import rotate_and_store

_FEATURES: frozenset[Feature] = frozenset(("score scale", "no rotary", "several rotaries", "partial rotary"))
"""What the operator can do, or is done before it."""
_PAGE_MULTIPLE = 64
"""Tokens that it reads at a time."""


def load_operator() -> SimpleNamespace:
    """What is used of xformers: the operator, its inputs, and the masks of padded and of paged keys.

    Raises:
        ImportError: xformers is not installed, or another one than 0.0.35 is, and names them otherwise.
    """
    from xformers.ops.fmha import attn_bias, triton_splitk
    from xformers.ops.fmha.common import Inputs

    if triton_splitk.FwOp.OPERATOR is None or triton_splitk._fwd_kernel_splitK is None:
        raise ImportError("this xformers finds no Triton")
    if _PAGE_MULTIPLE % triton_splitk.FwOp.BLOCK_N:
        raise ImportError(f"this xformers reads {triton_splitk.FwOp.BLOCK_N} tokens at a time")
    return SimpleNamespace(
        apply=triton_splitk.FwOp.apply,
        Inputs=Inputs,
        Padded=attn_bias.BlockDiagonalCausalWithOffsetPaddedKeysMask,
        Paged=attn_bias.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
    )


class XformersAttention(TritonAttention):
    """xformers' split-K operator for decodes, own kernels for rotation, cache writes and chunks."""

    name = "xformers"
    capabilities = replace(
        TritonAttention.capabilities,
        features=TritonAttention.capabilities.features & _FEATURES,
        dtypes=frozenset((torch.float16, torch.bfloat16)),
        float8_cache=False,
        head_sizes=frozenset((16, 32, 64, 128, 256)),
        block_multiple=_PAGE_MULTIPLE,
    )

    @classmethod
    def check_library(cls) -> None:
        load_operator()

    def __init__(self, shape: AttentionShape, rotaries: Sequence[Rotary], cache: Tensor) -> None:
        super().__init__(shape, rotaries, cache)
        self._operator = load_operator()
        tokens = cache.numel() // (cache.shape[4] * cache.shape[5])
        if tokens >= 2**31:
            raise ModelError(f"attention_backend 'xformers' counts tokens in 32 bits, too few for {tokens}")
        self._tokens = cache.view(1, tokens, shape.num_kv_heads, 1, shape.head_dim)
        self._masks: dict[int, Any] = {}
        self._paged: Any = None

    def prepare(self, batch: PagedBatch) -> None:
        super().prepare(batch)
        count = batch.num_decodes
        if count:
            mask = self._mask(count)
            # padding sees one token, of whatever block: nothing of it is used
            mask.k_seqinfo.seqlen.copy_((batch.positions[:count] + 1).clamp(min=1))
            tables = batch.tables.index_select(0, batch.rows[:count]) * (2 * self.cache.shape[1])
            self._paged = mask.make_paged(tables, self.shape.block_size, self._operator.Paged)

    def _mask(self, count: int) -> Any:
        """That of `count` decodes, without lengths; made before a graph is captured: it is copied there."""
        if count not in self._masks:
            lengths = [1] * count
            mask = self._operator.Padded.from_seqlens(q_seqlen=lengths, kv_padding=1, kv_seqlen=lengths)
            self._masks[count] = mask.to(self.cache.device)
        return self._masks[count]

    def forward(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        batch, spec = self.batch, self.shape.layers[layer]
        rotary = None if spec.rotary is None else self.rotaries[spec.rotary]
        output = query.new_empty(query.shape) if out is None else out.view(query.shape)
        rotate_and_store(query, key, value, rotary, self.cache, layer, replace(batch, num_decodes=0))
        if batch.num_decodes:
            output[: batch.num_decodes] = self._decode(layer, spec, query[: batch.num_decodes])
        if batch.chunks is not None:
            self._attend_chunks(layer, query, batch.chunks, output, sinks)
        return output.flatten(1)

    def _decode(self, layer: int, spec: AttentionSpec, query: Tensor) -> Tensor:
        """[decodes, heads, head_dim], from rotated queries like it."""
        size, group = self.shape.block_size, spec.num_heads // spec.num_kv_heads
        keys, values = (self._tokens[:, (2 * layer + part) * size :] for part in (0, 1))
        keys, values = (tokens.expand(-1, -1, -1, group, -1) for tokens in (keys, values))
        grouped = query.unflatten(1, (spec.num_kv_heads, group))[None]  # type: ignore[no-untyped-call]
        inputs = self._operator.Inputs(grouped, keys, values, self._paged, scale=spec.scale)
        attended: Tensor = self._operator.apply(inputs, needs_gradient=False)[0]
        return attended.reshape(query.shape)
