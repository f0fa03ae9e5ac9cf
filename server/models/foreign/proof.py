"""Whether a model computes the same piece by piece over the engine's cache as in one piece without it.

State of another kind than keys and values, positions that it counts itself, or a mask of its own would show.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.layers.cache_spec import CacheSpec, cache_places, cache_specs
from server.models.foreign.decoder import PAGED, ForeignDecoder
from server.ops.attention import AttentionBatch, AttentionShape, ChunkSpan
from server.ops.grouped_attention import GroupedAttention
from server.ops.layer_ops import LayerOps
from server.ops.torch.attention import TorchAttention

_BLOCK, _BLOCKS = 4, 7
_PIECES = (11, 9, 1, 1, 2)
"""Tokens that are computed together: of a text of 24."""
_DEVIATION = {torch.float32: 0.01, torch.float16: 0.2, torch.bfloat16: 0.2}
"""Of logits, by their own spread, that the rounding of a type may make: of half of the tokens at least, for a
router that chooses among experts may choose another."""


@torch.inference_mode()
def check(decoder: ForeignDecoder, dtype: torch.dtype) -> None:
    """Raise ModelError if its logits are others than those of transformers alone."""
    objection = TorchAttention.capabilities.objection(decoder.spec, dtype, _BLOCK)
    if objection is not None:
        raise ModelError(f"no attention backend can compute this model; that of torch: {objection}")
    length, model = sum(_PIECES), decoder.model
    ids = torch.arange(length, device=decoder.embedding.device) * 7 % decoder.spec.vocab_size
    model.set_attn_implementation("eager")
    expected: Tensor = model(input_ids=ids[None], use_cache=False).logits[0].float()
    model.set_attn_implementation(PAGED)
    found = _in_pieces(decoder, ids, dtype).float()
    deviation = (found - expected).abs().amax(-1) / expected.std()
    if not float(deviation.median()) < _DEVIATION[dtype]:
        raise ModelError(
            "it does not compute the same piece by piece: it keeps more of a text than keys and values"
        )


def _in_pieces(decoder: ForeignDecoder, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """[tokens, vocab]."""
    layers, found, start = decoder.spec.layers, [], 0
    specs = cache_specs(layers, str(dtype).removeprefix("torch."))
    attention = GroupedAttention(
        [_attention(decoder, spec, dtype, ids.device) for spec in specs], cache_places(layers, specs)
    )
    for size in _PIECES:
        attention.prepare(*[_batch(start, size, ids.device)] * len(specs))
        found.append(decoder(ids[start : start + size], None, attention, LayerOps()))
        start += size
    return torch.cat(found)


def _attention(
    decoder: ForeignDecoder, spec: CacheSpec, dtype: torch.dtype, device: torch.device
) -> TorchAttention:
    """Of the layers of one group."""
    layers = tuple(decoder.spec.layers[index].attention for index in spec.layers)
    cache = torch.zeros(_BLOCKS, *spec.block_shape(_BLOCK), dtype=dtype, device=device)
    return TorchAttention(AttentionShape(layers, _BLOCK, dtype), (), cache)


def _batch(start: int, size: int, device: torch.device) -> AttentionBatch:
    """Tokens from position `start` on: a decode if it is one, else a chunk."""
    places = torch.arange(start, start + size, device=device)
    blocks = torch.arange(-(-(start + size) // _BLOCK), device=device)
    tables = blocks[None] if size == 1 else blocks.new_zeros(0, 0)
    lengths = np.array([start + 1] if size == 1 else [], np.int64)
    chunks: list[Any] = [] if size == 1 else [ChunkSpan(0, size, start, blocks)]
    return AttentionBatch(places, places // _BLOCK, places % _BLOCK, lengths, tables, chunks)
