"""Qwen2 and Qwen3 (Yang et al., 2024, 2025): Llamas in which some layers may have a window.

Qwen2 has biases on queries, keys and values; Qwen3 normalises queries and keys head by head instead.
"""

from __future__ import annotations

from typing import Any

from server.models.architecture import Architecture
from server.models.llama import llama_spec
from server.models.reading import layer_windows


def read(hf: Any) -> Architecture:
    windows = layer_windows(hf)
    if hf.model_type == "qwen2":
        return Architecture(llama_spec(hf, bias=True, windows=windows))
    bias = bool(hf.attention_bias)
    return Architecture(llama_spec(hf, bias=bias, output_bias=bias, head_norm=True, windows=windows))
