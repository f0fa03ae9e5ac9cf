"""Command R and R7B (Cohere, 2024): both parts of a layer read the same norm; logits are scaled.

Neighbours in a head make the pairs that rotate. In Command R7B and A (``cohere2``) layers with a window
rotate, those that see everything know no positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.layers.spec import LayerSpec, NormSpec
from server.models.architecture import Architecture
from server.models.llama import llama_spec
from server.models.names import Names
from server.models.reading import layer_windows

NAMES = Names(paired=True, feed_forward_norm="input_layernorm")


def read(hf: Any) -> Architecture:
    bias, local = bool(hf.attention_bias), hf.model_type == "cohere2"
    norm = NormSpec(hf.layer_norm_eps, "layer")
    windows = layer_windows(hf) if local else None
    spec = llama_spec(hf, bias=bias, output_bias=bias, norm=norm, windows=windows)

    def beside(_: int, layer: LayerSpec) -> LayerSpec:
        attention = layer.attention
        if local and attention.window is None:
            attention = replace(attention, rotary=None)
        if not local and hf.use_qk_norm:
            attention = replace(attention, norm=norm, norm_scope="own")
        return replace(layer, attention=attention, parallel=True)

    return Architecture(replace(spec.with_layers(beside), logit_scale=hf.logit_scale), NAMES)
