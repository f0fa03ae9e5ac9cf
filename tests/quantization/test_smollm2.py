"""A real model, SmolLM2-135M-Instruct as Q4_1 GGUF, answers as transformers does on the same file."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from protocol.generation import GenerationConfig
from server.checkpoints.known import obtain
from server.continuous_batching.llm import LLM
from server.static_batching.pipeline import StaticPipeline

TOKENS = 24
OPTIONS = GenerationConfig(max_new_tokens=TOKENS)
VERBS = ("Explain", "Write a poem about", "List three facts about", "Translate to French:", "What is")
THINGS = (
    *("the Moon", "a river", "bread", "friendship", "prime numbers", "the year 1969", "42 + 17"),
    *("Python's `for` loop", "你好", "an owl & a fox", "music", "gravity", "rain", "coffee", "glass"),
    *("a neural network", "chess", "honey", "the sea", "silence"),
)


@pytest.mark.slow
def test_a_hundred_chats(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = obtain("smollm2", Path(tmp_path_factory.getbasetemp()).parent / "models").path
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    chats = [
        [{"role": "user", "content": f"{verb} {thing}"}] for verb, thing in itertools.product(VERBS, THINGS)
    ]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    assert len(prompts) == 100

    engine = LLM(path, model_loading_config={"torch_dtype": "float32", "device": "cpu"})
    own = [engine.tokenizer.hf.apply_chat_template(c, add_generation_prompt=True)["input_ids"] for c in chats]
    assert own == prompts
    answers = [each.answers[0].token_ids for each in engine.generate(prompts, OPTIONS)]
    del engine
    check_greedy(path, prompts, answers)

    static = StaticPipeline(path, worker_config={"torch_dtype": "float32", "device": "cpu"})
    few = [each.answers[0].token_ids for each in static.generate(prompts[::10], OPTIONS)]
    assert few == answers[::10]


@torch.inference_mode()
def check_greedy(path: Path, prompts: list[list[int]], answers: list[list[int]]) -> None:
    """Each token is the one that transformers chooses behind those before it: so are all, one by one."""
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        assert answer == logits.argmax(-1).tolist()
        assert len(answer) == TOKENS or answer[-1] == model.config.eos_token_id


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "arithmetic"), [("bfloat16", "exact"), ("float32", "int8")])
@torch.inference_mode()
def test_rounding_changes_few_choices(
    dtype: str, arithmetic: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Behind the same tokens, the greedy choice is nearly always that of transformers in float32."""
    path = obtain("smollm2", Path(tmp_path_factory.getbasetemp()).parent / "models").path
    loading = {"torch_dtype": dtype, "device": "cpu", "cpu_arithmetic": arithmetic}
    engine = LLM(path, model_loading_config=loading)
    chats = [[{"role": "user", "content": f"{VERBS[0]} {thing}"}] for thing in THINGS]
    tokenizer = engine.tokenizer.hf
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    answers = [each.answers[0].token_ids for each in engine.generate(prompts, OPTIONS)]
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    alike = []
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        alike += [one == other for one, other in zip(answer, logits.argmax(-1).tolist(), strict=True)]
    assert sum(alike) > 0.94 * len(alike)
