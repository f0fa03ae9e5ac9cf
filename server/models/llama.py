"""Llama 1 to 3 (Touvron et al., 2023; Dubey et al., 2024).

A decoder with root mean square norms before attention and feed-forward, rotary positions, grouped key heads
(Ainslie et al., 2023) and a feed-forward part gated by SiLU. Mistral and Qwen are variants of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.layers.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec, RotarySpec
from server.models.architecture import Architecture
from server.models.reading import activation, head_dim, kv_heads, rotary


def read(hf: Any) -> Architecture:
    bias = bool(hf.attention_bias)
    spec = llama_spec(hf, bias=bias, output_bias=bias, mlp_bias=bool(hf.mlp_bias))
    return Architecture(spec)


def llama_spec(
    hf: Any,
    *,
    bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    head_norm: bool = False,
    windows: Sequence[int | None] | None = None,
    norm: NormSpec | None = None,
    feed_forward: FeedForwardSpec | None = None,
    turning: RotarySpec | None = None,
) -> ModelSpec:
    """A model of this family's form.

    Args:
        hf: transformers' configuration.
        bias, output_bias: of the projections into attention, and out of it.
        mlp_bias: of those of the feed-forward part.
        head_norm: queries and keys are normalised head by head.
        windows: of each layer; None: no layer has one.
        norm, feed_forward, turning: norm, feed-forward part and rotary embedding; None: Llama's.
    """
    size = head_dim(hf)
    norm = norm or NormSpec(hf.rms_norm_eps)
    feed_forward = feed_forward or FeedForwardSpec(
        hf.intermediate_size, activation(hf.hidden_act), bias=mlp_bias
    )
    layers = [
        LayerSpec(
            attention=AttentionSpec(
                num_heads=hf.num_attention_heads,
                num_kv_heads=kv_heads(hf),
                head_dim=size,
                value_dim=size,
                scale=size**-0.5,
                window=window,
                norm=norm if head_norm else None,
                bias=bias,
                output_bias=output_bias,
            ),
            feed_forward=feed_forward,
            attention_norm=norm,
            feed_forward_norm=norm,
        )
        for window in windows or [None] * hf.num_hidden_layers
    ]
    return ModelSpec(
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        layers=tuple(layers),
        rotaries=(turning or rotary(hf),),
        norm=norm,
        tied=bool(hf.tie_word_embeddings),
    )
