"""Drafts on CUDA: the same tokens as without, in fewer steps, replayed or launched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.sampling.step_logits import StepLogits
from server.scheduling.speculation.by_model import ModelSpeculator
from server.worker.decode_graphs import Size
from server.worker.runner import PagedModelRunner
from tests.checkpoints import tiny_llama
from tests.continuous_batching import heads
from tests.continuous_batching.drafts import (
    KINDS,
    PROMPT,
    FreeDrafts,
    FreeModel,
    options,
    repetitive,
    with_lookup,
)
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.gpu.test_engine import cuda_llm


def looping(path: Path, share: float) -> Path:
    """A random Llama whose layers add less than usual: it walks in circles, and leaves them now and then."""
    import torch
    from transformers import AutoModelForCausalLM

    tiny_llama(path, hidden=256, heads=4, kv_heads=2)
    found = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for layer in found.model.layers:
            layer.self_attn.o_proj.weight *= share
            layer.mlp.down_proj.weight *= share
        found.lm_head.weight[200:250] *= 3.0
    found.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return looping(tmp_path_factory.mktemp("looping"), 0.0125)


@pytest.fixture(scope="module")
def circling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose tokens follow from the newest one, nearly always."""
    return looping(tmp_path_factory.mktemp("circling"), 0.0002)


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return Reference(model)


def drafting(model: Path, **sizes: Any) -> LLM:
    llm = cuda_llm(model, **sizes)
    llm.engine.scheduler.speculator.cost = FreeDrafts()
    return llm


@pytest.mark.parametrize("pressure", [False, True])
def test_tokens_are_those_of_transformers(model: Path, reference: Reference, pressure: bool) -> None:
    requests = mixed_requests(reference, 60, seed=11, longest=80, longest_prompt=40)
    requests = with_lookup(requests[:30] + repetitive(reference, requests[30:], seed=12), seed=13)
    needs = [c.num_rows * (len(p) + c.max_new_tokens) // 16 + c.num_rows for p, c in requests]
    llm = drafting(model, num_blocks=max(needs) if pressure else 2000)
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert reference.contradicted(requests, generations) == []
    stats = llm.engine.stats()
    assert stats.accepted_tokens > 40 and stats.step_failures == 0
    llm.engine.check()


@pytest.mark.parametrize("replayed", [True, False])
def test_every_option(model: Path, replayed: bool) -> None:
    """Alone and together, with and without drafts. A batch of another size rounds differently, and one that
    has drafts is of another size; float32 leaves little room for that."""
    llm = drafting(model)
    runner, choice = llm.engine.worker.runner, llm.engine.worker.decoder.sampler
    assert isinstance(runner, PagedModelRunner) and choice is not None
    if not replayed:
        runner._graphs = choice._captured = None
    kinds = [kind for kind in KINDS if kind != "beams"]
    answers = []
    for drafted in (0, 6):
        configs = [GenerationConfig(**options(kind, drafted)) for kind in kinds]
        found = llm.generate([PROMPT] * len(kinds), configs)
        found += [llm.generate([PROMPT], [config])[0] for config in configs]
        answers.append([[answer.token_ids for answer in generation.answers] for generation in found])
    assert answers[0] == answers[1]
    assert llm.engine.stats().accepted_tokens > 40 and llm.engine.stats().step_failures == 0


def test_the_same_bits(model: Path) -> None:
    """Where every sum has one order, drafts change nothing in bfloat16 either."""
    llm = LLM(
        model,
        model_loading_config={"torch_dtype": "bfloat16", "device": "cuda", "deterministic": True},
        batcher_config={"batch_max_tokens": 256, "batch_max_beams": 96},
        cache_config={"num_blocks": 2000, "num_blocks_cpu": 0},
    )
    llm.engine.scheduler.speculator.cost = FreeDrafts()
    prompts = [[5 + i, 7, 9] * (1 + i) for i in range(20)]
    answers = []
    for drafted in (0, 7):
        config = GenerationConfig(
            max_new_tokens=100, ignore_eos=True, logprobs=0, prompt_lookup_num_tokens=drafted
        )
        found = [generation.answers[0] for generation in llm.generate(prompts, config)]
        answers.append([(a.token_ids, [entry.logprob for entry in a.logprobs or []]) for a in found])
    assert answers[0] == answers[1]
    assert llm.engine.stats().accepted_tokens > 40


def test_drafted_steps_are_replayed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = drafting(model)
    runner = llm.engine.worker.runner
    assert isinstance(runner, PagedModelRunner) and runner._graphs is not None
    replay, sizes = runner._graphs.replay, list[Size]()

    def note(size: Size) -> StepLogits:
        sizes.append(size)
        return replay(size)

    monkeypatch.setattr(runner._graphs, "replay", note)
    llm.generate([PROMPT], GenerationConfig(**options("greedy", 10)))
    assert any(size.drafted for size in sizes) and len(sizes) == llm.engine.stats().steps - 1
    assert llm.engine.stats().accepted_tokens > 4


@pytest.mark.parametrize("knows", [True, False])
def test_a_draft_model(model: Path, reference: Reference, tmp_path: Path, knows: bool) -> None:
    """The model itself, all of whose guesses are right but for roundings, or another one."""
    draft = model if knows else tiny_llama(tmp_path, hidden=128, heads=2, kv_heads=1)
    llm = LLM(
        model,
        model_loading_config={"torch_dtype": "float32", "model_max_length": 1024, "device": "cuda"},
        batcher_config={"batch_max_tokens": 256, "batch_max_beams": 96},
        cache_config={"num_blocks": 2000, "num_blocks_cpu": 0},
        speculation_config={"draft_model": str(draft)},
    )
    speculator = llm.engine.scheduler.speculator
    assert isinstance(speculator, ModelSpeculator)
    speculator.cost, speculator.draft_cost = FreeDrafts(), FreeModel()
    requests = mixed_requests(reference, 30, seed=21, longest=80, longest_prompt=40)
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert reference.contradicted(requests, generations) == []
    stats = llm.engine.stats()
    assert stats.step_failures == 0 and stats.drafted_tokens > 200
    assert (stats.accepted_tokens > 0.4 * stats.drafted_tokens) == knows


def with_head(model: Path, head: Path) -> LLM:
    return LLM(
        model,
        model_loading_config={"torch_dtype": "float32", "model_max_length": 1024, "device": "cuda"},
        batcher_config={"batch_max_tokens": 256, "batch_max_beams": 96},
        cache_config={"num_blocks": 2000, "num_blocks_cpu": 0},
        speculation_config=heads.speculation_by(head),
    )


@pytest.mark.parametrize("knows", [True, False])
def test_a_draft_head(circling: Path, tmp_path: Path, knows: bool) -> None:
    """One that says what the newest token leads to, or one of random weights, from fewer tokens."""
    reference, layers = Reference(circling), [0, 1, 2]
    if knows:
        head = heads.knowing(tmp_path, circling)
    else:
        head = heads.eagle3(tmp_path, hidden=256, eagle_aux_hidden_state_layer_ids=layers)
    llm = with_head(circling, head)
    drafter = heads.drafting(llm)
    requests = mixed_requests(reference, 30, seed=21, longest=80, longest_prompt=40)
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert reference.contradicted(requests, generations) == []
    stats = llm.engine.stats()
    assert stats.step_failures == 0 and stats.drafted_tokens > 200
    assert (stats.accepted_tokens > 0.2 * stats.drafted_tokens) == knows
    drafter.check()


def test_a_head_guesses_the_same_replayed_and_launched(circling: Path, tmp_path: Path) -> None:
    """By how many of its guesses are right, and whether it failed."""
    counts = []
    for replayed in (True, False):
        llm = with_head(circling, heads.knowing(tmp_path, circling))
        drafter = heads.drafting(llm)
        if not replayed:
            drafter.runner._captured = None
        llm.generate([PROMPT, [5, 6, 7]], heads.greedy(60))
        counts.append(llm.engine.stats().accepted_tokens)
        assert not drafter._broken
    assert counts[0] == counts[1] > 20
