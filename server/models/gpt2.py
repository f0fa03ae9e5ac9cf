"""GPT-2 (Radford et al., 2019): learned positions, layer norms, no gate, biases, transposed matrices."""

from __future__ import annotations

from typing import Any

from server.checkpoints.errors import ModelError
from server.layers.spec import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, NormSpec
from server.models.architecture import Architecture, LengthLimit
from server.models.names import Names
from server.models.reading import activation

NAMES = Names(
    base="transformer.",
    derived=(".attn.bias", ".attn.masked_bias"),
    transposed=True,
    embedding="transformer.wte",
    positions="transformer.wpe",
    norm="transformer.ln_f",
    layer="transformer.h.{}",
    qkv=("attn.c_attn",),
    output="attn.c_proj",
    gate_up=("mlp.c_fc",),
    down="mlp.c_proj",
    attention_norm="ln_1",
    feed_forward_norm="ln_2",
)


def read(hf: Any) -> Architecture:
    if hf.add_cross_attention:
        raise ModelError("gpt2: add_cross_attention is not supported")
    norm = NormSpec(hf.layer_norm_epsilon, "layer", bias=True)
    inner = 4 * hf.n_embd if hf.n_inner is None else hf.n_inner
    feed_forward = FeedForwardSpec(inner, activation(hf.activation_function), gated=False, bias=True)
    layers = tuple(
        LayerSpec(_attention(hf, index), feed_forward, attention_norm=norm, feed_forward_norm=norm)
        for index in range(hf.n_layer)
    )
    spec = ModelSpec(
        vocab_size=hf.vocab_size,
        hidden_size=hf.n_embd,
        layers=layers,
        rotaries=(),
        norm=norm,
        learned_positions=hf.n_positions,
        tied=bool(hf.tie_word_embeddings),
    )
    return Architecture(
        spec, NAMES, limit=LengthLimit(hf.n_positions, f"gpt2 with {hf.n_positions} positions")
    )


def _attention(hf: Any, index: int) -> AttentionSpec:
    size = hf.n_embd // hf.n_head
    scale = size**-0.5 if hf.scale_attn_weights else 1.0
    if hf.scale_attn_by_inverse_layer_idx:
        scale /= index + 1
    return AttentionSpec(hf.n_head, hf.n_head, size, size, scale, rotary=None, bias=True, output_bias=True)
