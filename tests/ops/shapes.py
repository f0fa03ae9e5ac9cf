"""Attention of small models, for tests of its backends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from server.layers.spec import (
    AttentionSpec,
    FeedForwardSpec,
    LayerSpec,
    ModelSpec,
    NormSpec,
    RotarySpec,
)
from server.ops.attention import AttentionShape


def attention_spec(num_heads: int, num_kv_heads: int, head_dim: int, **fields: Any) -> AttentionSpec:
    """As of a Llama, unless `fields` say otherwise."""
    scale = fields.pop("scale", head_dim**-0.5)
    return AttentionSpec(num_heads, num_kv_heads, head_dim, head_dim, scale, **fields)


def attention_shape(
    num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype, layers: int = 3
) -> AttentionShape:
    """Of equal layers as a Llama has them."""
    return AttentionShape((attention_spec(num_heads, num_kv_heads, head_dim),) * layers, block_size, dtype)


def model_of(num_heads: int, kv_heads: int, head_dim: int, **attention: Any) -> Any:
    """What a choice looks at of a model on a GPU."""
    norm = NormSpec(1e-5)
    layer = LayerSpec(
        attention_spec(num_heads, kv_heads, head_dim, **attention), FeedForwardSpec(64), norm, norm
    )
    spec = ModelSpec(512, 64, (layer,), (RotarySpec(10000.0, head_dim),), norm)
    return SimpleNamespace(spec=spec, computed_by=None, modules=lambda: iter(()))
