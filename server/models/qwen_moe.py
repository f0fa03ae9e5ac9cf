"""Qwen2 and Qwen3 with experts (Yang et al., 2024, 2025): some layers may have one feed-forward part instead.

Qwen2 has one more expert that every token passes, times a gate of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.layers.spec import ExpertsSpec, FeedForwardSpec, LayerSpec
from server.models.architecture import Architecture
from server.models.llama import llama_spec
from server.models.reading import activation, check_window, layer_windows


def read(hf: Any) -> Architecture:
    if hf.model_type == "qwen2_moe":
        windows = layer_windows(hf) if hf.use_sliding_window else None
        spec = llama_spec(hf, bias=bool(hf.qkv_bias), windows=windows)
        shared: int | None = hf.shared_expert_intermediate_size
    else:
        check_window(hf.sliding_window)
        bias, windows = bool(hf.attention_bias), [hf.sliding_window] * hf.num_hidden_layers
        spec = llama_spec(hf, bias=bias, output_bias=bias, head_norm=True, windows=windows)
        shared = None
    normalized = bool(hf.norm_topk_prob)
    experts = ExpertsSpec(
        hf.num_experts, hf.num_experts_per_tok, normalized, shared=shared, shared_gate=shared is not None
    )
    part = FeedForwardSpec(hf.moe_intermediate_size, activation(hf.hidden_act), experts=experts)

    def routed(index: int, layer: LayerSpec) -> LayerSpec:
        single = index in hf.mlp_only_layers or (index + 1) % hf.decoder_sparse_step or not hf.num_experts
        return layer if single else replace(layer, feed_forward=part)

    return Architecture(spec.with_layers(routed))
