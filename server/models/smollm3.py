"""SmolLM3 (Hugging Face, 2025): a Llama in which every fourth layer knows no positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.layers.spec import LayerSpec
from server.models.architecture import Architecture
from server.models.llama import llama_spec
from server.models.reading import layer_windows


def read(hf: Any) -> Architecture:
    bias = bool(hf.attention_bias)
    windows = layer_windows(hf) if hf.use_sliding_window else None
    spec = llama_spec(hf, bias=bias, output_bias=bias, mlp_bias=bool(hf.mlp_bias), windows=windows)

    def placed(index: int, layer: LayerSpec) -> LayerSpec:
        rotary = layer.attention.rotary if hf.no_rope_layers[index] else None
        return replace(layer, attention=replace(layer.attention, rotary=rotary))

    return Architecture(spec.with_layers(placed))
