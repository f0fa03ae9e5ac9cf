"""Layers with windows keep only what is still seen, and answers stay those of transformers."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from server.sampling.step_logits import StepLogits
from server.scheduling.limits import most_held
from server.scheduling.plan import Draft, Plan
from server.scheduling.request import Sequence
from tests.checkpoints import tiny_tokenizer
from tests.continuous_batching.drafts import Requests, with_lookup
from tests.continuous_batching.driver import Driver, around_forward
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.overlapped import overlapped_llm
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.continuous_batching.test_exactness import assert_exact

WINDOW = 8
MODELS: dict[str, dict[str, Any]] = {
    "mistral": {"initializer_range": 0.2},
    "gemma3_text": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "num_hidden_layers": 3,
        "query_pre_attn_scalar": 16,
        "initializer_range": 0.06,  # the embedding is the output layer: wider, and each token repeats itself
    },
}


def save(path: Path, kind: str) -> Path:
    """A random model whose layers, or all but one, see `WINDOW` tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "max_position_embeddings": 2048,
        "sliding_window": WINDOW, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
    }  # fmt: skip
    tiny_tokenizer(path)
    torch.manual_seed(5)
    config = AutoConfig.for_model(kind, **(sizes | MODELS[kind]))
    AutoModelForCausalLM.from_config(config).float().save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("mistral"), "mistral")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("gemma"), "gemma3_text")


@pytest.fixture(scope="module")
def windowed(model: Path) -> Reference:
    return Reference(model)


def draft_answers(llm: LLM, reference: Reference, requests: Requests) -> None:
    """Let drafts be what transformers answers, now and then with a wrong token in it."""
    speculator, rng = llm.engine.scheduler.speculator, random.Random(0)
    known = {tuple(prompt): reference.answers(prompt, config)[0] for prompt, config in requests}

    def propose(decodes: Seq[Sequence], budget: int) -> list[Draft]:
        drafts = []
        for line, sequence in enumerate(decodes):
            request, done = sequence.request, sequence.num_generated
            answer = known[tuple(sequence.history.slice(0, request.prompt_length))]
            most = min(rng.randint(1, 9), budget, request.params.max_new_tokens - done - 1)
            guess = answer[done : done + most]
            if guess and request.params.prompt_lookup.num_tokens:
                if rng.random() < 0.5:
                    guess[rng.randrange(len(guess))] = 7
                drafts.append(Draft(sequence, line, guess, ngram_size=1))
                budget -= len(guess)
        return drafts

    speculator.propose = propose  # type: ignore[method-assign]


def poison_free_blocks(llm: LLM) -> None:
    """Before every step, let the free blocks contain what would be noticed."""
    storage = llm.engine.worker.runner._storage

    def forward(plan: Plan, compute: Any) -> StepLogits:
        for group, memory in zip(llm.engine.cache.groups, storage.device, strict=True):
            free = [block for block, count in enumerate(group.device.references) if not count]
            memory[free] = 100.0
        result: StepLogits = compute()
        return result

    around_forward(llm, forward)


@pytest.mark.parametrize("block", [4, 16])
@pytest.mark.parametrize("policy", ["swap", "recompute"])
def test_tokens_are_those_of_transformers(model: Path, windowed: Reference, policy: str, block: int) -> None:
    """Beams, drafts, stop strings and prefixes, in a cache so small that requests leave and come back."""
    requests = mixed_requests(windowed, 24, seed=block, longest=50, longest_prompt=60)
    requests = with_lookup(requests, seed=13)
    sizes = {"num_blocks": 512 // block, "num_blocks_cpu": 1024 // block, "block_size": block}
    llm = small_llm(model, **sizes, chunk=29, tokens=64, watermark=0.0, swap_policy=policy, max_length=400)
    draft_answers(llm, windowed, requests)
    assert_exact(llm, windowed, requests)
    stats = llm.engine.stats()
    assert stats.prefix_hits > 0 and 0 < stats.accepted_tokens < stats.drafted_tokens
    if len(llm.engine.cache.groups) > 1:  # else nothing runs out: sequences hold so little
        assert (stats.preempted_by_swap if policy == "swap" else stats.preempted_by_recompute) > 0


def test_a_small_pool_of_windows_makes_requests_leave(gemma: Path) -> None:
    """Swaps and recomputation for lack of blocks that windows need, while the others would do."""
    reference = Reference(gemma)
    requests = mixed_requests(reference, 30, seed=4, longest=40, longest_prompt=60)
    sizes = {"num_blocks": 900, "num_window_blocks": 26, "num_blocks_cpu": 30, "block_size": 4}
    llm = small_llm(gemma, **sizes, chunk=29, tokens=64, watermark=0.0, swap_policy="swap", max_length=400)
    assert_exact(llm, reference, requests)
    stats = llm.engine.stats()
    assert stats.preempted_by_swap > 0 and stats.preempted_by_recompute > 0


@pytest.mark.parametrize("replayed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_steps_that_overlap(
    model: Path, windowed: Reference, monkeypatch: pytest.MonkeyPatch, replayed: bool
) -> None:
    requests = mixed_requests(windowed, 12, seed=6, longest=40, longest_prompt=50)
    llm = overlapped_llm(
        model, monkeypatch, num_blocks=60, replayed=replayed, block_size=4, max_length=400, watermark=0.0
    )
    assert_exact(llm, windowed, requests)


def test_nothing_reads_what_is_given_back(model: Path, windowed: Reference) -> None:
    """Free blocks hold other numbers before every step: what was there must not be read."""
    requests = mixed_requests(windowed, 12, seed=7, longest=40, longest_prompt=50)
    llm = small_llm(model, block_size=4, chunk=17, tokens=64, max_length=400, enable_prefix_cache=False)
    poison_free_blocks(llm)
    assert_exact(llm, windowed, requests)


@pytest.mark.parametrize("block", [4, 16])
def test_a_thousand_tokens_hold_a_few_blocks_of_a_window(model: Path, block: int) -> None:
    """And more of them than the pool of a window could hold without giving back are served at once."""
    windows = 4 * most_held(1000, block, WINDOW) + 64 // block + 4
    mixed = "gemma" in model.name
    cache: dict[str, int] = {"num_blocks": 4 * -(-1000 // block)} if mixed else {"num_blocks": windows}
    if mixed:
        cache["num_window_blocks"] = windows
    llm = small_llm(
        model, **cache, num_blocks_cpu=0, block_size=block, beams=4, tokens=64, max_length=1024, watermark=0.0
    )
    driver, most = Driver(llm), 0
    for name in "abcd":
        options = {"max_new_tokens": 600, "ignore_eos": True}
        driver.add(name, [(len(name) + 7 * i) % 500 + 3 for i in range(400)], options)
    group = llm.engine.cache.groups[-1]
    assert group.size.window == WINDOW and group.size.num_blocks == windows
    while llm.engine.has_work:
        driver.step()
        for request in llm.engine.scheduler.queues.running:
            held = len([*request.sequences[0].tables[-1].held()])
            if request.is_decoding and request.sequences[0].num_generated > 1:
                most = max(most, held)
    assert most == most_held(1000, block, WINDOW) <= 3
    assert all(len(driver.answers(name)[0]) == 600 for name in "abcd") and not driver.failures
    stats = llm.engine.stats()
    assert stats.preempted_by_recompute == stats.preempted_by_swap == 0


def test_a_request_that_fits_only_by_giving_back_is_served(mistral: Path) -> None:
    llm = small_llm(mistral, num_blocks=6, num_blocks_cpu=0, block_size=4, beams=2, max_length=400)
    prompt = [(7 * i) % 500 + 3 for i in range(100)]
    config = GenerationConfig(max_new_tokens=50, eos_token_id=511)
    (generation,) = llm.generate([prompt], config)
    assert [a.token_ids for a in generation.answers] == Reference(mistral).answers(prompt, config)
    assert llm.engine.limits.max_new_tokens(100, 2) == 300
    assert llm.engine.limits.objection(100, 2, 300) is None


def test_what_cannot_fit_in_a_window_s_pool_is_refused_by_its_numbers(gemma: Path) -> None:
    llm = small_llm(gemma, num_blocks=200, num_window_blocks=5, block_size=4, beams=4, max_length=400)
    limits = llm.engine.limits
    assert limits.objection(40, 1, 50) is None
    objection = limits.objection(40, 2, 50)
    assert objection is not None and "6 cache blocks (window 8) of 4 tokens" in objection[1]
    assert limits.objection(3, 2, limits.max_new_tokens(3, 2)) is None


def test_groups_are_told_to_operators(gemma: Path) -> None:
    llm = small_llm(gemma, num_blocks=50, num_window_blocks=20, block_size=4, max_length=400)
    full, window = llm.capabilities["cache_groups"]
    assert (full["name"], full["layers"], full["num_blocks"], full["window"]) == ("full", 1, 50, None)
    assert (window["name"], window["layers"], window["num_blocks"]) == ("window_8", 2, 20)
    driver = Driver(llm)
    driver.add("a", [(7 * i) % 500 + 3 for i in range(62)], {"max_new_tokens": 5, "ignore_eos": True})
    driver.step()
    driver.step()
    usage = llm.engine.stats().cache_usage_by_group
    assert usage == {"full": 16 / 50, "window_8": 3 / 20}
    assert llm.engine.stats().cache_usage == 16 / 50


def test_blocks_for_windows_that_are_not_there_are_refused(mistral: Path) -> None:
    with pytest.raises(ModelError, match=r"cache_config\.num_window_blocks: this model has no layers"):
        small_llm(mistral, num_window_blocks=20)
