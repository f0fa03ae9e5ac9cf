"""gpt-oss (OpenAI, 2025): experts with a gate within limits, attention sinks, windows in some layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.layers.spec import ClampSpec, ExpertsSpec, FeedForwardSpec, LayerSpec
from server.models.architecture import Architecture
from server.models.llama import llama_spec
from server.models.names import Names
from server.models.reading import layer_windows

LIMIT, SHARPNESS = 7.0, 1.702
"""Of the gate, where the configuration class does not have them: in transformers 5.17 they are constants."""
NAMES = Names(router="mlp.router", stacked_experts=True, expert_gate_up=("gate_up_proj",))


def read(hf: Any) -> Architecture:
    bias = bool(hf.attention_bias)
    part = FeedForwardSpec(
        hf.intermediate_size,
        bias=True,
        clamp=ClampSpec(getattr(hf, "swiglu_limit", LIMIT), getattr(hf, "swiglu_alpha", SHARPNESS)),
        experts=ExpertsSpec(hf.num_local_experts, hf.num_experts_per_tok, router_bias=True),
    )
    spec = llama_spec(hf, bias=bias, output_bias=bias, windows=layer_windows(hf), feed_forward=part)

    def sunk(_: int, layer: LayerSpec) -> LayerSpec:
        return replace(layer, attention=replace(layer.attention, sinks=True))

    return Architecture(spec.with_layers(sunk), NAMES)
