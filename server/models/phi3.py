"""Phi-3, 3.5 and 4 (Abdin et al., 2024): Llamas whose projections are stored fused.

Phi-4-mini rotates three quarters of each head; the variants for long texts stretch the angles by LongRoPE.
"""

from __future__ import annotations

from typing import Any

from server.models.architecture import Architecture
from server.models.llama import llama_spec
from server.models.names import Names
from server.models.reading import check_window, rotary

NAMES = Names(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",))


def read(hf: Any) -> Architecture:
    check_window(hf.sliding_window)
    windows = [hf.sliding_window] * hf.num_hidden_layers
    return Architecture(llama_spec(hf, windows=windows, turning=rotary(hf, partial=True)), NAMES)
