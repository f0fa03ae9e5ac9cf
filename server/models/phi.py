"""Phi-1, 1.5 and 2 (Gunasekar et al., 2023): both parts of a layer read the same norm of the stream.

Layer norms, no gate, and a bias everywhere, the output layer included; a part of each head rotates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.layers.spec import FeedForwardSpec, LayerSpec, NormSpec
from server.models.architecture import Architecture
from server.models.llama import llama_spec
from server.models.names import Names
from server.models.reading import activation, rotary

NAMES = Names(
    norm="model.final_layernorm",
    output="self_attn.dense",
    query_norm="self_attn.q_layernorm",
    key_norm="self_attn.k_layernorm",
    gate_up=("mlp.fc1",),
    down="mlp.fc2",
    feed_forward_norm="input_layernorm",
)


def read(hf: Any) -> Architecture:
    norm = NormSpec(hf.layer_norm_eps, "layer", bias=True)
    spec = llama_spec(
        hf,
        bias=True,
        output_bias=True,
        norm=norm,
        feed_forward=FeedForwardSpec(hf.intermediate_size, activation(hf.hidden_act), gated=False, bias=True),
        turning=rotary(hf, partial=True),
    )

    def beside(_: int, layer: LayerSpec) -> LayerSpec:
        attention = replace(layer.attention, norm=norm if hf.qk_layernorm else None)
        return replace(layer, attention=attention, parallel=True)

    return Architecture(replace(spec.with_layers(beside), head_bias=True), NAMES)
