"""StarCoder2 (Lozhkov et al., 2024): layer norms, no gate, biases, and a window in all layers."""

from __future__ import annotations

from typing import Any

from server.layers.spec import FeedForwardSpec, NormSpec
from server.models.architecture import Architecture
from server.models.llama import llama_spec
from server.models.names import Names
from server.models.reading import activation, check_window

NAMES = Names(gate_up=("mlp.c_fc",), down="mlp.c_proj")


def read(hf: Any) -> Architecture:
    check_window(hf.sliding_window)
    bias = bool(hf.use_bias)
    spec = llama_spec(
        hf,
        bias=bias,
        output_bias=bias,
        norm=NormSpec(hf.norm_epsilon, "layer", bias=True),
        feed_forward=FeedForwardSpec(hf.intermediate_size, activation(hf.hidden_act), gated=False, bias=bias),
        windows=[hf.sliding_window] * hf.num_hidden_layers,
    )
    return Architecture(spec, NAMES)
