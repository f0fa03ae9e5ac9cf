"""Models without a file of ours are served by transformers' modules with the same answers, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.models import load
from server.models.foreign import read
from server.models.registry import FAMILIES, read_architecture
from tests.continuous_batching.drafts import drafting_llm
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.continuous_batching.test_exactness import assert_exact
from tests.models.small_models import EVEN, EXPERTS, LAYERS, SIZES, TIED, save

EXPERT_FIELDS = EXPERTS | {
    "n_routed_experts": 5,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
}
LATENT = EXPERT_FIELDS | {
    "head_dim": None,
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
}
MODELS: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bitnet": {},
    "cwm": {"sliding_window": 5, "layer_types": LAYERS},
    "deepseek_v2": LATENT | {"topk_method": "greedy"},
    "deepseek_v3": LATENT,
    "ernie4_5": {},
    "ernie4_5_moe": EXPERT_FIELDS,
    "exaone4": {"sliding_window": 9, "layer_types": LAYERS},
    "flex_olmo": EXPERT_FIELDS,
    "gemma4_text": TIED
    | {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 6,
        "global_head_dim": 32,  # layers that see everything have larger heads, the last ones those of others
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 509,
    },
    "glm4_moe": EXPERT_FIELDS,
    "gpt_bigcode": {"n_embd": 44, "n_head": 4, "n_layer": 2, "n_positions": 512},
    "granitemoe": EXPERT_FIELDS,
    "helium": {},
    "hunyuan_v1_dense": {},
    "minimax_m2": EXPERT_FIELDS,
    "ministral": {"sliding_window": 13, "layer_types": LAYERS},
    "nanochat": {},
    "nemotron": {},
    "olmo": {},
    "opt": {"ffn_dim": 96},
    "persimmon": {},
    "phimoe": EXPERT_FIELDS,
    "seed_oss": {},
}
"""Model type → fields beside `SIZES` and `EVEN`."""
BLOCK = 8


@pytest.mark.parametrize("kind", MODELS)
def test_answers_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """In chunks, with shared beginnings, in a cache so small that requests are swapped or computed anew."""
    assert kind not in FAMILIES
    path = save(tmp_path, kind, EVEN | MODELS[kind])
    reference = Reference(path)
    llm = small_llm(path, block_size=BLOCK, max_length=400, num_blocks=26, watermark=0.0, chunk=13, tokens=40)
    kernels = llm.capabilities["kernels"]
    assert kernels["name"] == "transformers" and "no file in server/models" in kernels["reason"]
    requests = mixed_requests(reference, 5, seed=3, longest=12, longest_prompt=45)
    requests = [(prompt, options.model_copy(update={"stop": []})) for prompt, options in requests]
    assert_exact(llm, reference, requests)


def test_a_beginning_that_is_in_the_cache_and_drafts(tmp_path: Path) -> None:
    path = save(tmp_path, "arcee", EVEN)
    reference = Reference(path)
    prompt = [5, 6, 7, 8] * 9
    options = GenerationConfig(max_new_tokens=30, eos_token_id=508, prompt_lookup_num_tokens=4)
    llm = drafting_llm(path, block_size=BLOCK, max_length=400)
    for _ in range(2):
        (generation,) = llm.generate([prompt], options)
        assert [answer.token_ids for answer in generation.answers] == reference.answers(prompt, options)
    assert llm.engine.stats().prefix_hits > 0 and llm.engine.stats().drafted_tokens > 0


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("bloom", {}, "transformers' modules of it do not support its attention interface"),
        ("mamba", {}, "it has a recurrent state"),
        ("diffllama", {}, "a layer attends several times"),
        ("llama4_text", {"attention_chunk_size": 8}, "its attention cannot be found out"),
        ("arcee", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ("recurrent_gemma", {}, "it has a recurrent state"),
        ("vit", {}, "transformers has no causal language model of it"),
        ("t5", {}, "transformers has no causal language model of it"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(kind: str, fields: dict[str, Any], said: str) -> None:
    sizes = {} if kind in ("vit", "t5") else SIZES | EVEN
    with pytest.raises(ModelError) as caught:
        read_architecture(AutoConfig.for_model(kind, **(sizes | fields)))
    message = str(caught.value)
    assert message.startswith(f"model type {kind!r} is not supported by continuous batching")
    assert said in message and "static batching may serve it" in message and "\n" not in message


def test_lengths_beyond_the_positions_that_there_are_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, "opt", EVEN | {"max_position_embeddings": 64})
    with pytest.raises(
        ModelError, match="opt of 64 positions, by transformers' modules, is not supported for"
    ):
        small_llm(path, max_length=65)


def test_a_model_that_keeps_more_than_keys_and_values_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its layers attend through the interface: what it computes piece by piece shows it."""
    path, plain = save(tmp_path, "opt", EVEN), read.load_foreign

    def remember(module: Any, given: Any, output: Any) -> Any:
        """A running mean over all tokens of a pass, as a state would be."""
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        counts = torch.arange(1, hidden.shape[1] + 1)[:, None]
        hidden = hidden + hidden.cumsum(1) / counts
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def load_with_state(*args: Any) -> Any:
        model = plain(*args)
        model.model.decoder.layers[0].register_forward_hook(remember)
        return model

    monkeypatch.setattr(read, "load_foreign", load_with_state)
    with pytest.raises(ModelError, match="it keeps more of a text than keys and values"):
        small_llm(path, max_length=400)


def test_quantized_weights_of_a_foreign_model_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "open_format", lambda *_: object())
    with pytest.raises(ModelError, match="quantized weights of model type 'arcee', which"):
        small_llm(save(tmp_path, "arcee", EVEN), max_length=400)
