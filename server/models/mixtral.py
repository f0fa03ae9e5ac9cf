"""Mixtral (Jiang et al., 2024): Mistral with eight experts a layer, of which a token passes two."""

from __future__ import annotations

from typing import Any

from server.layers.spec import ExpertsSpec, FeedForwardSpec
from server.models.architecture import Architecture
from server.models.llama import llama_spec
from server.models.names import Names
from server.models.reading import activation, check_window

NAMES = Names(
    router="block_sparse_moe.gate",
    experts="block_sparse_moe.experts",
    expert_gate_up=("w1", "w3"),
    expert_down="w2",
)


def read(hf: Any) -> Architecture:
    check_window(hf.sliding_window)
    experts = ExpertsSpec(hf.num_local_experts, hf.num_experts_per_tok)
    part = FeedForwardSpec(hf.intermediate_size, activation(hf.hidden_act), experts=experts)
    windows = [hf.sliding_window] * hf.num_hidden_layers
    return Architecture(llama_spec(hf, windows=windows, feed_forward=part), NAMES)
