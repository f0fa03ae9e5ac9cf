"""MiMo (Xiaomi, 2025): a Qwen2 with a layer behind it that predicts one token more.

That layer is a draft head: it is read where `speculation_config.draft_head` names the checkpoint
(`server.models.heads.mimo`).
"""

from __future__ import annotations

from typing import Any

from server.models.architecture import Architecture
from server.models.llama import llama_spec
from server.models.names import Names
from server.models.reading import layer_windows

MTP_LAYERS = "model.mtp_layers."
"""What the names of the head's tensors begin with."""


def read(hf: Any) -> Architecture:
    spec = llama_spec(hf, bias=True, windows=layer_windows(hf))
    return Architecture(spec, Names(apart=(MTP_LAYERS,)))
