"""Whole forward passes against transformers in float64, and whole answers token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from server.continuous_batching import LLM
from server.ops import choose
from server.ops.cpu.library import NativeLibrary
from server.sampling.step_logits import StepLogits
from server.scheduling.plan import Plan
from tests.checkpoints import tiny_llama, tiny_tokenizer
from tests.continuous_batching.driver import around_forward
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.continuous_batching.test_exactness import assert_exact

SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 224,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 517,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
WINDOW = 20
"""Neither of a block of 8 tokens nor of several."""
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama-bias-tied": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=WINDOW)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SIZES,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=40,
        )
    ),
}


@pytest.fixture(autouse=True)
def only_this_build(library: NativeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of this module run on the build under test."""
    monkeypatch.setattr(choose, "load", lambda: library)


def save(kind: str, path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    model = MODELS[kind]()
    for name, parameter in model.named_parameters():  # transformers sets biases to 0 and norms to 1
        if name.endswith("bias") or "norm" in name:
            mean = float("norm" in name and kind != "gemma3")  # which stores them less 1
            torch.nn.init.normal_(parameter, mean=mean, std=0.2)
    model.to(dtype).save_pretrained(path)
    tiny_tokenizer(path)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("bfloat16", 2e-2)], ids=["f32", "bf16"])
def test_logits_of_prompts_and_decodes(tmp_path: Path, kind: str, dtype: str, tolerance: float) -> None:
    """Prompts whole and in pieces of odd lengths, then decodes beside another prompt."""
    save(kind, tmp_path, getattr(torch, dtype))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    llm = small_llm(tmp_path, dtype=dtype)
    assert llm.capabilities["kernels"]["name"].startswith("native")
    prompts = [torch.randint(3, 517, (length,)).tolist() for length in (70, 33, 1)]
    assert_logits(llm, model, prompts, tolerance)


def assert_logits(llm: LLM, model: Any, prompts: list[list[int]], tolerance: float) -> None:
    """Each choice while `prompts` are answered is made from the logits of `model`, in float64."""
    found: list[tuple[list[int], Tensor]] = []
    watch_steps(llm, found)
    llm.generate(prompts)
    assert len(found) > 30
    whole: list[tuple[list[int], Tensor]] = []
    for tokens, logits in sorted(found, key=lambda each: -len(each[0])):
        # a pass over a whole answer has the logits of all its beginnings
        known = next((after for text, after in whole if text[: len(tokens)] == tokens), None)
        if known is None:
            with torch.inference_mode():
                known = model(torch.tensor([tokens])).logits[0]
            whole.append((tokens, known))
        expected = known[len(tokens) - 1]
        error = (logits.double() - expected).square().mean().sqrt()
        assert error < tolerance * expected.std()
    assert len(whole) == len(prompts)


def watch_steps(llm: LLM, found: list[tuple[list[int], Tensor]]) -> None:
    """Note the tokens before each choice, and the logits for it."""

    def noting(plan: Plan, compute: Callable[[], StepLogits]) -> StepLogits:
        result = compute()
        for sequence, logits in zip(plan.sampled(), result.logits, strict=True):
            found.append((sequence.history.slice(0, len(sequence.history)), logits.clone()))
        return result

    around_forward(llm, noting)


def test_answers_are_those_of_transformers(tiny_model: Path, reference: Reference) -> None:
    """Greedy and beam answers in float32, in a cache so small that requests are swapped."""
    requests = mixed_requests(reference, 40, seed=11, longest=60, longest_prompt=150)
    llm = small_llm(tiny_model, num_blocks=120, num_blocks_cpu=60, watermark=0.0)
    assert_exact(llm, reference, requests)
    assert llm.engine.stats().preempted_by_swap > 0


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Reference]]:
    """Models with windows, and transformers on them, which answers once for all builds."""
    made = {}
    for kind in ("mistral", "gemma3"):
        path = tmp_path_factory.mktemp(kind)
        save(kind, path, torch.float32)
        made[kind] = path, Reference(path)
    return made


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_answers_with_windows_are_those_of_transformers(
    windowed: dict[str, tuple[Path, Reference]], kind: str
) -> None:
    """Prompts and answers that leave the window, with prefix hits, beams and swaps."""
    path, reference = windowed[kind]
    requests = mixed_requests(reference, 16, seed=3, longest=50, longest_prompt=100)
    llm = small_llm(path, num_blocks=90, num_blocks_cpu=60, watermark=0.0)
    assert llm.capabilities["kernels"]["name"].startswith("native (")
    assert_exact(llm, reference, requests)


def test_a_batch_changes_nothing_in_bfloat16(tmp_path: Path) -> None:
    """A row's logits do not depend on which rows are computed beside it."""
    tiny_llama(tmp_path)
    llm = small_llm(tmp_path, dtype="bfloat16")
    prompts = [torch.randint(3, 512, (40,)).tolist() for _ in range(9)]
    together = [generation.answers[0].token_ids for generation in llm.generate(prompts)]
    alone = [llm.generate([prompt])[0].answers[0].token_ids for prompt in prompts]
    assert together == alone
