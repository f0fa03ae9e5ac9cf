"""Families beside Llama give the tokens that transformers gives: greedy, beams, chunks, prefixes, swaps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from server.models.config import ModelConfig
from server.models.registry import read_architecture
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.continuous_batching.test_exactness import assert_exact
from tests.models.small_models import MODELS, SIZES, save

BLOCK = 8


@pytest.fixture(scope="module", params=MODELS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    path = save(tmp_path_factory.mktemp("family"), *MODELS[request.param])
    return path, Reference(path)


def engine(path: Path, **sizes: Any) -> LLM:
    return small_llm(path, block_size=BLOCK, max_length=400, **sizes)


def test_answers_are_those_of_transformers(saved: tuple[Path, Reference]) -> None:
    """In a cache so small that requests are swapped, prompts in chunks of odd lengths, shared beginnings."""
    path, reference = saved
    layers = ModelConfig.load(path).spec.layers
    short = all(layer.attention.window in range(1, BLOCK) for layer in layers)  # then few blocks do
    blocks = {"num_blocks": 16 if short else 26, "num_blocks_cpu": 60, "watermark": 0.0}
    llm = engine(path, **blocks, chunk=13, tokens=40)
    requests = mixed_requests(reference, 10, seed=3, longest=20, longest_prompt=50)
    # a model that repeats its prompt would end by stop strings, which transformers also looks for in that
    requests = [(prompt, options.model_copy(update={"stop": []})) for prompt, options in requests]
    even = reference.model.config.hidden_size % 32 == 0
    assert llm.capabilities["kernels"]["name"].startswith("native") == even
    assert_exact(llm, reference, requests)
    assert llm.engine.stats().preempted_by_swap > 0


def test_a_beginning_that_is_in_the_cache(saved: tuple[Path, Reference]) -> None:
    path, reference = saved
    llm = engine(path)
    requests = mixed_requests(reference, 2, seed=9, longest=10)[:1]
    for _ in range(2):
        assert_exact(llm, reference, requests)
    assert llm.engine.stats().prefix_hits > 0


def test_logits_in_bfloat16(saved: tuple[Path, Reference], tmp_path: Path) -> None:
    """Within the precision of the type: what is kept in float32, and rounded, is as in transformers.

    Tokens pass all experts, for rounding may make a router choose others.
    """
    path, reference = saved
    if "num_experts_per_tok" in (config := (path / "config.json").read_text()):
        path = shutil.copytree(path, tmp_path / "all experts")
        (path / "config.json").write_text(
            config.replace('"num_experts_per_tok": 2', '"num_experts_per_tok": 5')
        )
        reference = Reference(path)
    prompt = list(range(3, 60))
    (generation,) = engine(path, dtype="bfloat16").generate(
        [prompt], GenerationConfig(max_new_tokens=1, logprobs=10)
    )
    (report,) = generation.answers[0].logprobs or []
    with torch.inference_mode():
        expected = reference.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    found = torch.tensor([value for _, value in report.top])
    true = expected[[token for token, _ in report.top]]
    assert (found - true).abs().max() < 0.15 * expected.std()


def test_variants_that_are_not_supported_are_refused_by_name(tmp_path: Path) -> None:
    for kind, fields, said in [
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"hidden_activation": "quick_gelu"}, "activation 'quick_gelu'"),
        ("llama", {"hidden_act": "tanh"}, "activation 'tanh'"),
        ("gemma2", {"use_bidirectional_attention": True}, "gemma2: use_bidirectional_attention"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": "1e4"}}, "rope_theta is '1e4'"),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": "2"}},
            "factor is '2'",
        ),
        ("llama", {"is_causal": False}, "llama: tokens that see later ones"),
        ("gemma", {"is_causal": None}, "gemma: tokens that see later ones"),
        ("stablelm", {"is_causal": False}, "stablelm: tokens that see later ones"),
        ("gpt2", {"add_cross_attention": True}, "gpt2: add_cross_attention"),
        ("olmoe", {"clip_qkv": 8.0}, "olmoe: clip_qkv"),
    ]:
        with pytest.raises(ModelError, match=said):
            read_architecture(AutoConfig.for_model(kind, **(SIZES | fields)))


def test_more_tokens_than_learned_positions_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, *MODELS["gpt2"])
    said = "gpt2 with 512 positions is not supported for model_max_length 513: set it to at most 512"
    with pytest.raises(ModelError, match=said):
        small_llm(path, max_length=513)
