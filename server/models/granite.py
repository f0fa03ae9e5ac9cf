"""Granite 3 and 4 without experts (IBM, 2024): a Llama with factors of embeddings, scores, parts, logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.layers.spec import LayerSpec
from server.models.architecture import Architecture
from server.models.llama import llama_spec


def read(hf: Any) -> Architecture:
    bias = bool(hf.attention_bias)
    spec = llama_spec(hf, bias=bias, output_bias=bias, mlp_bias=bool(hf.mlp_bias))

    def scaled(_: int, layer: LayerSpec) -> LayerSpec:
        attention = replace(layer.attention, scale=hf.attention_multiplier)
        return replace(layer, attention=attention, residual_scale=hf.residual_multiplier)

    embedding, logits = hf.embedding_multiplier, 1 / hf.logits_scaling
    return Architecture(replace(spec.with_layers(scaled), embedding_scale=embedding, logit_scale=logits))
