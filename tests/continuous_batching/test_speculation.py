"""Drafts change how fast an answer comes, never what it is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from protocol.generation import GenerationConfig
from tests.continuous_batching.drafts import (
    KINDS,
    PROMPT,
    Options,
    Requests,
    drafting_llm,
    options,
    repetitive,
    with_lookup,
)
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.reference import Reference, mixed_requests

# -- exactness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("policy", ["swap", "recompute"])
def test_tokens_are_those_of_transformers(
    looping_model: Path, looping: Reference, policy: str, prefix_cache: bool
) -> None:
    """Beside beams, stop strings, penalties and ends of every kind, while requests come and go."""
    requests = mixed_requests(looping, 60, seed=11, longest=80, longest_prompt=40)
    requests = with_lookup(requests[:30] + repetitive(looping, requests[30:], seed=12), seed=13)
    llm = drafting_llm(
        looping_model,
        num_blocks=60,
        num_blocks_cpu=40,
        watermark=0.0,
        swap_policy=policy,
        enable_prefix_cache=prefix_cache,
    )
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert looping.contradicted(requests, generations) == []
    stats = llm.engine.stats()
    assert stats.accepted_tokens > 300 and stats.drafted_tokens > stats.accepted_tokens
    assert stats.preempted_by_swap + stats.preempted_by_recompute > 10
    assert stats.cache_usage == stats.host_cache_usage == 0.0
    llm.engine.check()


def test_a_model_that_rarely_repeats_itself(tiny_model: Path, reference: Reference) -> None:
    requests = with_lookup(mixed_requests(reference, 40, seed=21, longest=60), seed=22)
    llm = drafting_llm(tiny_model)
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert reference.contradicted(requests, generations) == []
    assert llm.engine.stats().drafted_tokens > 200


def test_accepted_tokens_save_steps(looping_model: Path) -> None:
    steps = []
    for drafted in (0, 10):
        llm = drafting_llm(looping_model)
        config = GenerationConfig(max_new_tokens=200, ignore_eos=True, prompt_lookup_num_tokens=drafted)
        llm.generate([[5, 6, 7]], config)
        steps.append(llm.engine.stats().steps)
    assert steps[0] == 200 and steps[1] < 80


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_native_kernels_give_the_same_bits(looping_model: Path, dtype: str) -> None:
    """A drafted token is computed like any decode, so that even bfloat16 answers stay the same."""
    rng = random.Random(3)
    prompts = [rng.choices(range(3, 500), k=rng.randint(1, 30)) for _ in range(20)]
    answers = []
    for drafted in (0, 7):
        llm = drafting_llm(looping_model, dtype=dtype, num_blocks=2000)
        if not llm.capabilities["kernels"]["name"].startswith("native"):
            pytest.skip("no compiler")
        config = GenerationConfig(max_new_tokens=100, ignore_eos=True, prompt_lookup_num_tokens=drafted)
        answers.append([g.answers[0].token_ids for g in llm.generate(prompts, config)])
    assert answers[0] == answers[1]
    assert llm.engine.stats().accepted_tokens > 100


# -- every option of decoding ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "beams"])
def test_each_option_alone(looping_model: Path, plain: dict[str, list[list[int]]], kind: str) -> None:
    llm = drafting_llm(looping_model)
    driver = Driver(llm)
    driver.add(kind, PROMPT, options(kind, 6))
    driver.finish()
    assert driver.answers(kind) == plain[kind]
    assert llm.engine.stats().accepted_tokens > 0, "no draft was right: this shows nothing"


@pytest.mark.parametrize("num_blocks", [400, 44])
def test_all_options_in_one_batch(
    looping_model: Path, plain: dict[str, list[list[int]]], num_blocks: int
) -> None:
    driver = Driver(drafting_llm(looping_model, num_blocks=num_blocks, watermark=0.0))
    for kind in KINDS:
        driver.add(kind, PROMPT, options(kind, 6))
    driver.finish()
    assert {kind: driver.answers(kind) for kind in KINDS} == plain
    assert num_blocks == 400 or driver.engine.stats().preempted_by_swap > 0


@pytest.mark.parametrize("step", range(1, 30, 2))
@pytest.mark.parametrize("kind", ["greedy", "several", "penalised"])
def test_preempted_at_any_step(
    looping_model: Path, plain: dict[str, list[list[int]]], kind: str, step: int
) -> None:
    driver = Driver(drafting_llm(looping_model))
    driver.add(kind, PROMPT, options(kind, 6))
    for _ in range(step):
        driver.step()
    for request in list(driver.engine.scheduler.queues.running):
        driver.engine.scheduler.queues.recompute(request)
    driver.finish()
    assert driver.answers(kind) == plain[kind]


@pytest.mark.parametrize("step", range(1, 30, 3))
def test_swapped_at_any_step(looping_model: Path, plain: dict[str, list[list[int]]], step: int) -> None:
    """A request of higher priority takes nearly all blocks at once."""
    llm = drafting_llm(looping_model, num_blocks=14, watermark=0.0, swap_policy="swap")
    driver = Driver(llm)
    driver.add("greedy", PROMPT, options("greedy", 6))
    for _ in range(step):
        driver.step()
    driver.add("urgent", list(range(3, 60)), {"max_new_tokens": 40, "ignore_eos": True}, priority=100)
    driver.finish()
    assert driver.answers("greedy") == plain["greedy"]


@pytest.mark.parametrize("cut", [1, 7, 20, 59])
@pytest.mark.parametrize("kind", ["greedy", "filtered", "penalised"])
def test_continued_from_a_prefix(
    looping_model: Path, plain: dict[str, list[list[int]]], kind: str, cut: int
) -> None:
    whole = plain[kind][0]
    driver = Driver(drafting_llm(looping_model))
    driver.add("rest", PROMPT, options(kind, 6), emitted=[whole[:cut]], stream=True)
    driver.finish()
    assert whole[:cut] + driver.answers("rest")[0] == whole


@pytest.mark.parametrize("length", range(1, 60, 4))
def test_lengths_in_the_middle_of_a_draft(
    looping_model: Path, plain: dict[str, list[list[int]]], length: int
) -> None:
    driver = Driver(drafting_llm(looping_model))
    driver.add("short", PROMPT, options("greedy", 10) | {"max_new_tokens": length})
    driver.finish()
    assert driver.answers("short")[0] == plain["greedy"][0][:length]


def test_ends_within_accepted_drafts(
    looping_model: Path, looping: Reference, plain: dict[str, list[list[int]]]
) -> None:
    """The last tokens of a loop end the answer at their first occurrence, those in the loop's middle too."""
    answer = plain["greedy"][0]
    requests: Requests = []
    for token in dict.fromkeys(answer):
        ends: Options = {"max_new_tokens": 60, "prompt_lookup_num_tokens": 10, "eos_token_id": token}
        requests.append((PROMPT, GenerationConfig(**ends)))
        held = ends | {"min_new_tokens": answer.index(token) + 2}
        requests.append((PROMPT, GenerationConfig(**held)))
    text = looping.tokenizer.decode(answer).encode("ascii", "ignore").decode()
    for start in range(0, len(text) - 8, 5):
        stop = [text[start : start + 4].strip() or "none", text[start + 2 : start + 9].strip() or "none"]
        config = GenerationConfig(max_new_tokens=60, prompt_lookup_num_tokens=10, stop=stop)
        requests.append((PROMPT, config))
    llm = drafting_llm(looping_model)
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert looping.contradicted(requests, generations) == []
    assert llm.engine.stats().accepted_tokens > 100
    llm.engine.check()
