"""Packages of models of any architecture that transformers has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from protocol.generation import GenerationConfig
from server.static_batching.config import WorkerConfig
from server.static_batching.generate import generate
from server.static_batching.model import load_model
from server.static_batching.prompts import Prompt
from tests.checkpoints import tiny_tokenizer
from tests.static_batching.alone import PROMPTS, alone

ARCHITECTURES: dict[str, Any] = {
    "GPT2Config": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "OPTConfig": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128}
    | {"word_embed_proj_dim": 64},
    "BloomConfig": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "seq_length": 256},
    "GPTNeoXConfig": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"intermediate_size": 128},
    "Qwen2Config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "intermediate_size": 128},
    "Gemma2Config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
    | {"num_key_value_heads": 2, "intermediate_size": 128, "sliding_window": 8},
    "MambaConfig": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    "RwkvConfig": {"hidden_size": 64, "num_hidden_layers": 2, "attention_hidden_size": 64},
}
CANNOT_BATCH = {"RwkvConfig"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_architecture(architecture: str, tmp_path: Path) -> None:
    """All are padded but those that a batch would change: these are found out, and run alone."""
    torch.manual_seed(0)
    config = getattr(transformers, architecture)(
        vocab_size=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.2,
        **ARCHITECTURES[architecture],
    )
    AutoModelForCausalLM.from_config(config).eval().save_pretrained(tmp_path)
    tiny_tokenizer(tmp_path)
    worker = WorkerConfig(model_name_or_path=str(tmp_path), device="cpu", model_max_length=256)
    model = load_model(worker)
    assert model.can_batch == (architecture not in CANNOT_BATCH)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    config = GenerationConfig(max_new_tokens=20)
    expected = [alone(reference, prompt, max_new_tokens=20) for prompt in PROMPTS]
    groups = [list(range(len(PROMPTS)))]
    if not model.can_batch:
        groups = [[i] for i in range(len(PROMPTS))]
    answers = {}
    for group in groups:
        batch = generate(model, [Prompt(PROMPTS[i], config) for i in group])
        answers.update(zip(group, batch.answers, strict=True))
    assert [[answers[i][0].token_ids] for i in range(len(PROMPTS))] == expected
