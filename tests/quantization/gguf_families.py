"""Small float checkpoints of the families that GGUF files hold, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.checkpoints import tiny_tokenizer

_SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": False},
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 4},
    "gemma3_text": {
        "num_hidden_layers": 6,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 4,
    },
    "phi3": {},
    "qwen2_moe": _EXPERTS | {"shared_expert_intermediate_size": 48},
    "qwen3_moe": _EXPERTS | {"norm_topk_prob": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False},
}
"""transformers' name → fields of the configuration."""


def make(family: str, path: Path) -> Path:
    """A checkpoint of random weights in directory `path`."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(_SIZES | FAMILIES[family]))
    model = AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, mean=0.0 if "gemma" in family else 1.0, std=0.2)
        elif name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(path)
    tiny_tokenizer(path)
    return path
