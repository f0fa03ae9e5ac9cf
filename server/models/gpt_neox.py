"""GPT-NeoX and Pythia (Black et al., 2022; Biderman et al., 2023): both parts of a layer read one stream.

Layer norms, no gate and biases; a quarter of each head rotates. Queries, keys and values are stored head by
head.
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
    base="gpt_neox.",
    derived=("rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"),
    renamed=(("embed_out.", "lm_head."),),
    mixed_heads=True,
    embedding="gpt_neox.embed_in",
    norm="gpt_neox.final_layer_norm",
    layer="gpt_neox.layers.{}",
    qkv=("attention.query_key_value",),
    output="attention.dense",
    gate_up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
)


def read(hf: Any) -> Architecture:
    bias = bool(hf.attention_bias)
    spec = llama_spec(
        hf,
        bias=bias,
        output_bias=bias,
        norm=NormSpec(hf.layer_norm_eps, "layer", bias=True),
        feed_forward=FeedForwardSpec(hf.intermediate_size, activation(hf.hidden_act), gated=False, bias=True),
        turning=rotary(hf, partial=True),
    )

    def beside(_: int, layer: LayerSpec) -> LayerSpec:
        return replace(layer, parallel=bool(hf.use_parallel_residual))

    return Architecture(spec.with_layers(beside), NAMES)
