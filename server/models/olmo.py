"""OLMo 2 and 3 (Team OLMo, 2024, 2025): norms stand behind each part only, and over all heads.

In OLMo 3 three of four layers see a window, and those that see everything have stretched angles. OLMoE
(Muennighoff et al., 2024) has norms before each part, and experts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.checkpoints.errors import ModelError
from server.layers.spec import ExpertsSpec, FeedForwardSpec, LayerSpec
from server.models.architecture import Architecture
from server.models.llama import llama_spec
from server.models.reading import activation, layer_windows, rotary

LOCAL, GLOBAL = 0, 1
"""The rotary embeddings of OLMo 3."""


def read(hf: Any) -> Architecture:
    if hf.model_type == "olmoe":
        return _read_experts(hf)
    local = hf.model_type == "olmo3"
    bias = bool(hf.attention_bias)
    spec = llama_spec(
        hf,
        bias=bias,
        output_bias=bias,
        head_norm=True,
        windows=layer_windows(hf) if local else None,
        turning=rotary(hf, hf.rope_parameters["sliding_attention"]) if local else None,
    )

    def behind(_: int, layer: LayerSpec) -> LayerSpec:
        attention = replace(layer.attention, norm_scope="joint")
        if local and attention.window is None:
            attention = replace(attention, rotary=GLOBAL)
        return replace(
            layer,
            attention=attention,
            attention_norm=None,
            feed_forward_norm=None,
            attention_post_norm=spec.norm,
            feed_forward_post_norm=spec.norm,
        )

    spec = spec.with_layers(behind)
    if local:
        spec = replace(spec, rotaries=(*spec.rotaries, rotary(hf, hf.rope_parameters["full_attention"])))
    return Architecture(spec)


def _read_experts(hf: Any) -> Architecture:
    if hf.clip_qkv is not None:
        raise ModelError("olmoe: clip_qkv is not supported")
    bias = bool(hf.attention_bias)
    experts = ExpertsSpec(hf.num_experts, hf.num_experts_per_tok, normalized=bool(hf.norm_topk_prob))
    part = FeedForwardSpec(hf.intermediate_size, activation(hf.hidden_act), experts=experts)
    spec = llama_spec(hf, bias=bias, output_bias=bias, head_norm=True, feed_forward=part)

    def joint(_: int, layer: LayerSpec) -> LayerSpec:
        return replace(layer, attention=replace(layer.attention, norm_scope="joint"))

    return Architecture(spec.with_layers(joint))
