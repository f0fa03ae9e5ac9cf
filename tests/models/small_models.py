"""Configurations of small models of every family, for transformers to make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2ForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from server.checkpoints.mimo_config import register_mimo
from tests.checkpoints import tiny_tokenizer

register_mimo()
MIMO = type("MiMoForCausalLM", (Qwen2ForCausalLM,), {"config_class": CONFIG_MAPPING["mimo"]})
"""A Qwen2 by its arithmetic; transformers has no class of that name."""
AutoModelForCausalLM.register(CONFIG_MAPPING["mimo"], MIMO, exist_ok=True)

SIZES: dict[str, Any] = {
    "hidden_size": 44,
    "intermediate_size": 90,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "vocab_size": 509,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
EVEN = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
"""Sizes that the C++ kernels take; the others are computed by torch operations."""
PLAIN = {"hidden_size": 56, "head_dim": None}
"""Where the size of a head follows from the others: 14, which the C++ kernels do not take."""
TIED = {"initializer_range": 0.06}
"""Where the embedding is the output layer: wider, and each token repeats itself."""
UNTIED = {"tie_word_embeddings": False}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10_000.0},
}
GEMMA = TIED | {"layer_types": LAYERS, "query_pre_attn_scalar": 7}
GEMMA3 = GEMMA | {"rope_parameters": ROPES}
GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.0,
}
NEOX = {"head_dim": None, "num_key_value_heads": None}
GPT2 = {"n_embd": 44, "n_layer": 3, "n_head": 4, "n_positions": 512, "hidden_size": 44, "head_dim": None}
EXPERTS = {
    "num_experts": 5,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 42,
    "shared_expert_intermediate_size": 64,
}
APART = {"initializer_range": 0.22}
"""Where at `SIZES`' a router's second and third expert lie 1e-6 apart: rounding would choose between them."""
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("cohere", TIED | {"use_qk_norm": True, "logit_scale": 0.7}),
    "cohere-even": ("cohere", EVEN | TIED | {"use_qk_norm": True, "attention_bias": True}),
    "cohere2-window-6": ("cohere2", PLAIN | TIED | {"layer_types": LAYERS, "sliding_window": 6}),
    "cohere2-window-13-even": ("cohere2", EVEN | UNTIED | {"layer_types": LAYERS, "sliding_window": 13}),
    "gemma": ("gemma", UNTIED | {"num_key_value_heads": 1}),
    "gemma2-window-5": ("gemma2", GEMMA | {"sliding_window": 5, "final_logit_softcapping": 3.0}),
    "gemma2-window-18-even": ("gemma2", GEMMA | EVEN | {"sliding_window": 18, "attn_logit_softcapping": 2.0}),
    "gemma3-window-5-capped": (
        "gemma3_text",
        GEMMA3 | {"sliding_window": 5, "final_logit_softcapping": 0.7},
    ),
    "gemma3-window-19-biased-untied": (
        "gemma3_text",
        GEMMA3 | EVEN | {"sliding_window": 19, "attention_bias": True, "tie_word_embeddings": False},
    ),
    "glm": ("glm", {}),
    "glm4": ("glm4", {"attention_bias": True}),
    "glm4-even": ("glm4", EVEN | {"attention_bias": True, "eos_token_id": [1, 5]}),
    "gpt2": ("gpt2", TIED | GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2-even": ("gpt2", TIED | GPT2 | {"n_embd": 64, "hidden_size": 64, "n_inner": 96}),
    "gpt-neox": ("gpt_neox", NEOX | {"hidden_size": 48, "rotary_pct": 0.5}),
    "gpt-neox-even": ("gpt_neox", EVEN | NEOX | {"rotary_pct": 0.25, "use_parallel_residual": False}),
    "granite": ("granite", GRANITE | {"head_dim": 20}),
    "granite-even": ("granite", GRANITE | EVEN | {"attention_bias": True, "mlp_bias": True}),
    "gpt-oss-window-6": ("gpt_oss", EXPERTS | {"sliding_window": 6, "layer_types": LAYERS}),
    "gpt-oss-window-17-even": ("gpt_oss", EVEN | EXPERTS | {"sliding_window": 17, "rope_scaling": YARN}),
    "mixtral": ("mixtral", EXPERTS),
    "mixtral-window-40-even": ("mixtral", EVEN | EXPERTS | {"sliding_window": 40}),
    "olmoe": ("olmoe", PLAIN | EXPERTS | APART),
    "olmoe-even": ("olmoe", EVEN | EXPERTS | {"norm_topk_prob": True}),
    "qwen2-moe": ("qwen2_moe", PLAIN | EXPERTS | {"shared_expert_intermediate_size": 70}),
    "qwen2-moe-window-7-even": (
        "qwen2_moe",
        EVEN
        | EXPERTS
        | {
            "moe_intermediate_size": 32,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 9,
            "norm_topk_prob": True,
        },
    ),
    "qwen3-moe": ("qwen3_moe", EXPERTS | {"mlp_only_layers": [1]}),
    "qwen3-moe-even": (
        "qwen3_moe",
        EVEN | EXPERTS | {"moe_intermediate_size": 32, "decoder_sparse_step": 2, "norm_topk_prob": True},
    ),
    "mistral-window-7": ("mistral", {"sliding_window": 7}),
    "mistral-window-33": ("mistral", EVEN | {"sliding_window": 33}),
    "olmo2": ("olmo2", PLAIN),
    "olmo2-even": ("olmo2", EVEN | {"attention_bias": True}),
    "olmo3-window-9": ("olmo3", PLAIN | {"sliding_window": 9, "rope_scaling": YARN, "layer_types": LAYERS}),
    "olmo3-window-21-even": (
        "olmo3",
        EVEN | {"sliding_window": 21, "rope_scaling": YARN, "layer_types": LAYERS},
    ),
    "phi": ("phi", {"head_dim": None, "hidden_size": 48, "qk_layernorm": True, "partial_rotary_factor": 0.5}),
    "phi-even": ("phi", EVEN | {"head_dim": None, "partial_rotary_factor": 0.5}),
    "phi3-window-7": ("phi3", {"head_dim": None, "hidden_size": 48, "sliding_window": 7}),
    "phi3-even": ("phi3", EVEN | {"head_dim": None, "partial_rotary_factor": 0.75}),
    "qwen2-window-11": (
        "qwen2",
        {"sliding_window": 11, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "mimo": ("mimo", {}),
    "mimo-even": ("mimo", EVEN),
    "qwen3-window-2": ("qwen3", {"sliding_window": 2, "use_sliding_window": True, "max_window_layers": 2}),
    "smollm3": ("smollm3", TIED | {"no_rope_layers": [1, 0, 1]}),
    "smollm3-window-10-even": (
        "smollm3",
        EVEN | UNTIED | {"no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 10},
    ),
    "starcoder2-window-8": ("starcoder2", PLAIN | TIED | {"sliding_window": 8}),
    "starcoder2-even": ("starcoder2", EVEN | TIED),
}
"""Name → model type, and fields beside `SIZES`."""


def config(kind: str, fields: dict[str, Any]) -> Any:
    """transformers' configuration of a model with `fields` beside `SIZES`; None: without the field."""
    known = {name: value for name, value in (SIZES | fields).items() if value is not None}
    return AutoConfig.for_model(kind, **known)


def save(path: Path, kind: str, fields: dict[str, Any]) -> Path:
    """A random model, whose biases and norms are random too."""
    tiny_tokenizer(path, vocab=SIZES["vocab_size"])
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config(kind, fields)).float()
    for name, parameter in model.named_parameters():  # transformers sets biases to 0 and norms to 1 or 0
        if name.endswith("bias") or "norm" in name or ".ln_" in name:
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
    model.save_pretrained(path)
    return path
