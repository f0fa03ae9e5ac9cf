"""GLM-4 (Team GLM, 2024): half of each head rotates, and neighbours in it make the pairs.

The variants of 2025 (``glm4``) normalise each part before and after.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.layers.spec import LayerSpec
from server.models.architecture import Architecture
from server.models.llama import llama_spec
from server.models.names import Names
from server.models.reading import rotary

NAMES = Names(paired=True, gate_up=("mlp.gate_up_proj",))
NAMES_BEHIND = replace(
    NAMES, attention_post_norm="post_self_attn_layernorm", feed_forward_post_norm="post_mlp_layernorm"
)


def read(hf: Any) -> Architecture:
    spec = llama_spec(hf, bias=bool(hf.attention_bias), turning=rotary(hf, partial=True))
    if hf.model_type == "glm":
        return Architecture(spec, NAMES)

    def behind(_: int, layer: LayerSpec) -> LayerSpec:
        return replace(layer, attention_post_norm=spec.norm, feed_forward_post_norm=spec.norm)

    return Architecture(spec.with_layers(behind), NAMES_BEHIND)
