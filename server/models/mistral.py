"""Mistral (Jiang et al., 2023): a Llama whose layers may see only a window of tokens."""

from __future__ import annotations

from typing import Any

from server.models.architecture import Architecture
from server.models.llama import llama_spec
from server.models.reading import check_window


def read(hf: Any) -> Architecture:
    check_window(hf.sliding_window)
    windows = [hf.sliding_window] * hf.num_hidden_layers
    return Architecture(llama_spec(hf, windows=windows))
