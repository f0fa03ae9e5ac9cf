"""Gemma 3, its text part (Gemma Team, 2025).

Five of six layers see a window and rotate by a base for short distances; the sixth sees all tokens and
rotates by one for long distances. Each part is normalised before and after, so are queries and keys, and the
weights of norms are stored less 1. Embeddings are scaled by the root of their size, scores by a number of
their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.checkpoints.errors import ModelError
from server.layers.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec
from server.models.architecture import Architecture
from server.models.names import Names
from server.models.reading import activation, head_dim, kv_heads, layer_windows, rotary

LOCAL, GLOBAL = 0, 1
"""The rotary embeddings."""


def read(hf: Any) -> Architecture:
    _refuse_variants(hf)
    norm = NormSpec(hf.rms_norm_eps, minus_one=True)
    attention = AttentionSpec(
        num_heads=hf.num_attention_heads,
        num_kv_heads=kv_heads(hf),
        head_dim=head_dim(hf),
        value_dim=head_dim(hf),
        scale=hf.query_pre_attn_scalar**-0.5,
        norm=norm,
        bias=bool(hf.attention_bias),
        output_bias=bool(hf.attention_bias),
    )
    layer = LayerSpec(
        attention,
        FeedForwardSpec(hf.intermediate_size, activation(hf.hidden_activation)),
        attention_norm=norm,
        feed_forward_norm=norm,
        attention_post_norm=norm,
        feed_forward_post_norm=norm,
    )
    layers = [
        replace(
            layer, attention=replace(attention, window=window, rotary=GLOBAL if window is None else LOCAL)
        )
        for window in layer_windows(hf)
    ]
    ropes = hf.rope_parameters
    spec = ModelSpec(
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        layers=tuple(layers),
        rotaries=(rotary(hf, ropes["sliding_attention"]), rotary(hf, ropes["full_attention"])),
        norm=norm,
        embedding_scale=hf.hidden_size**0.5,
        logit_softcap=hf.final_logit_softcapping,
        tied=bool(hf.tie_word_embeddings),
    )
    return Architecture(spec, Names(feed_forward_norm="pre_feedforward_layernorm"))


def _refuse_variants(hf: Any) -> None:
    if hf.use_bidirectional_attention:
        raise ModelError("gemma3_text: use_bidirectional_attention is not supported")
    if hf.attn_logit_softcapping is not None:
        raise ModelError("gemma3_text: attn_logit_softcapping is not supported")
