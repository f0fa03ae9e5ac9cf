"""Gemma 1 and 2 (Gemma Team, 2024): Llamas with scaled embeddings.

These are multiplied by the root of their size, and weights of norms are stored less 1. Gemma 2 normalises
each part before and after, caps scores and logits, and every second layer sees a window.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.checkpoints.errors import ModelError
from server.layers.spec import FeedForwardSpec, LayerSpec, ModelSpec, NormSpec
from server.models.architecture import Architecture
from server.models.llama import llama_spec
from server.models.names import Names
from server.models.reading import activation, layer_windows


def read(hf: Any) -> Architecture:
    if getattr(hf, "use_bidirectional_attention", None):
        raise ModelError(f"{hf.model_type}: use_bidirectional_attention is not supported")
    return _read_second(hf) if hf.model_type == "gemma2" else Architecture(_spec(hf, hf.hidden_act))


def _spec(hf: Any, gate: str, windows: list[int | None] | None = None) -> ModelSpec:
    spec = llama_spec(
        hf,
        bias=bool(hf.attention_bias),
        output_bias=bool(hf.attention_bias),
        norm=NormSpec(hf.rms_norm_eps, minus_one=True),
        feed_forward=FeedForwardSpec(hf.intermediate_size, activation(gate)),
        windows=windows,
    )
    return replace(spec, embedding_scale=hf.hidden_size**0.5)


def _read_second(hf: Any) -> Architecture:
    spec = _spec(hf, hf.hidden_activation, layer_windows(hf))

    def capped(_: int, layer: LayerSpec) -> LayerSpec:
        scale, softcap = hf.query_pre_attn_scalar**-0.5, hf.attn_logit_softcapping
        return replace(
            layer,
            attention=replace(layer.attention, scale=scale, softcap=softcap),
            attention_post_norm=spec.norm,
            feed_forward_post_norm=spec.norm,
        )

    spec = replace(spec.with_layers(capped), logit_softcap=hf.final_logit_softcapping)
    return Architecture(spec, Names(feed_forward_norm="pre_feedforward_layernorm"))
