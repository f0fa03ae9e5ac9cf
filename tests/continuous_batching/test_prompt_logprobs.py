"""Log probabilities of prompts are transformers', whatever becomes of the request."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.sampling.step_logits import StepLogits
from server.scheduling.plan import Plan
from server.static_batching.pipeline import StaticPipeline
from server.text.logprob import TokenLogprob
from server.text.offline import Generation
from tests.continuous_batching.drafts import drafting_llm, with_lookup
from tests.continuous_batching.driver import around_forward
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.overlapped import overlapped_llm
from tests.continuous_batching.reference import Reference

DICE = random.Random(3)
PROMPTS = [DICE.choices(range(3, 500), k=length) for length in (1, 2, 17, 64, 65, 130, 200, 8)]
PROMPTS.append(PROMPTS[6][:150])
OPTIONS: list[dict[str, Any]] = [
    {"prompt_logprobs": 2}, {"prompt_logprobs": 0}, {"prompt_logprobs": 5, "logprobs": 1},
    {"prompt_logprobs": 3, "num_beams": 3, "num_return_sequences": 2},
    {"prompt_logprobs": 1, "do_sample": True, "n": 3}, {}, {"prompt_logprobs": 20, "repetition_penalty": 1.3},
]  # fmt: skip


def requests(count: int, new_tokens: int = 12) -> tuple[list[list[int]], list[GenerationConfig]]:
    """Prompts and options, each with each in time."""
    configs = [
        GenerationConfig(
            **{"max_new_tokens": new_tokens, "ignore_eos": True, "seed": i, **OPTIONS[i % len(OPTIONS)]}
        )
        for i in range(count)
    ]
    return [PROMPTS[i % len(PROMPTS)] for i in range(count)], configs


def expected(reference: Reference, prompt: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = reference.model(torch.tensor([prompt])).logits
    return logits[0, :-1].log_softmax(dim=-1)


def check(reference: Reference, prompt: list[int], top: int, found: list[TokenLogprob] | None) -> None:
    assert found is not None
    logs = expected(reference, prompt)
    assert [entry.token_id for entry in found] == prompt[1:]
    for entry, line in zip(found, logs, strict=True):
        own = line[entry.token_id]
        assert entry.logprob == pytest.approx(own.item(), abs=2e-5)
        assert entry.rank is not None and abs(entry.rank - 1 - int((line > own).sum())) <= 1
        values, ids = line.topk(top)
        assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=2e-5)
        assert {i for i, _ in entry.top} == set(ids.tolist())


def check_all(
    reference: Reference,
    prompts: list[list[int]],
    configs: list[GenerationConfig],
    generations: list[Generation],
) -> None:
    for prompt, config, generation in zip(prompts, configs, generations, strict=True):
        for answer in generation.answers:
            if config.prompt_logprobs is None:
                assert answer.prompt_logprobs is None
            else:
                check(reference, prompt, config.prompt_logprobs, answer.prompt_logprobs)


def scoring(llm: LLM, tokens: int) -> LLM:
    """`llm`, whose steps report on at most so many tokens of prompts."""
    llm.engine.scheduler.limits = replace(llm.engine.limits, scored_tokens=tokens)
    return llm


@pytest.mark.parametrize("scored", [7, 1000])
def test_prompts_in_pieces(tiny_model: Path, reference: Reference, scored: int) -> None:
    """Chunks are cut where a step would report on too much; answers are what they are without reports."""
    prompts, configs = requests(18)
    llm = scoring(small_llm(tiny_model), scored)
    generations = llm.generate(prompts, configs)
    check_all(reference, prompts, configs, generations)
    silent = [config.model_copy(update={"prompt_logprobs": None}) for config in configs]
    for generation, other in zip(generations, llm.generate(prompts, silent), strict=True):
        assert [a.token_ids for a in generation.answers] == [a.token_ids for a in other.answers]


def test_a_cached_prefix_hides_nothing(tiny_model: Path, reference: Reference) -> None:
    llm, prompt = small_llm(tiny_model), PROMPTS[6]
    for top in (None, 3, 3, None):
        config = GenerationConfig(max_new_tokens=2, prompt_logprobs=top)
        hits = llm.engine.stats().prefix_hits
        (generation,) = llm.generate([prompt], config)
        check_all(reference, [prompt], [config], [generation])
    assert llm.engine.stats().prefix_hits - hits > 190, "who wants no report reuses the blocks"


@pytest.mark.parametrize("policy", ["swap", "recompute"])
def test_prompts_that_are_preempted(tiny_model: Path, reference: Reference, policy: str) -> None:
    """Prompts that are computed again are reported on once."""
    prompts, configs = requests(24)
    sizes: dict[str, Any] = {"num_blocks": 60, "num_blocks_cpu": 40, "watermark": 0.0}
    llm = scoring(small_llm(tiny_model, swap_policy=policy, **sizes), 20)
    check_all(reference, prompts, configs, llm.generate(prompts, configs))
    stats = llm.engine.stats()
    assert stats.preempted_by_swap + stats.preempted_by_recompute > 0


@pytest.mark.parametrize("dropped", [False, True])
def test_steps_that_do_not_wait(
    tiny_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, dropped: bool
) -> None:
    """Prompts that leave while a step of theirs is under way, and its report is to come."""
    prompts, configs = requests(12, new_tokens=3)
    llm = scoring(overlapped_llm(tiny_model, monkeypatch, num_blocks=400), 30)
    scheduler, dice = llm.engine.scheduler, random.Random(4)
    schedule = scheduler.schedule

    def drop_some(now: float, **options: float) -> Plan:
        for request in list(scheduler.queues.running):
            if not request.is_decoding and dice.random() < 0.3:
                scheduler.queues.drop(request)
        return schedule(now, **options)

    if dropped:
        monkeypatch.setattr(scheduler, "schedule", drop_some)
    check_all(reference, prompts, configs, llm.generate(prompts, configs))
    stats = llm.engine.stats()
    assert stats.step_failures == 0 and (stats.preempted_by_recompute > 5) == dropped


def test_the_other_server(tiny_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one pass and in several."""
    prompts, configs = requests(14)
    pipeline = StaticPipeline(tiny_model, worker_config={"device": "cpu", "torch_dtype": "float32"})
    check_all(reference, prompts, configs, pipeline.generate(prompts, configs))
    monkeypatch.setattr("server.static_batching.prompt_scores._SCORES", 512 * 40)
    check_all(reference, prompts, configs, pipeline.generate(prompts, configs))


def test_beside_drafts(tiny_model: Path, reference: Reference) -> None:
    prompts, configs = requests(14)
    prompts = [prompt[:9] * 3 for prompt in prompts]
    drafting = [
        (prompt, config.model_copy(update={"max_new_tokens": 30}))
        for prompt, config in zip(prompts, configs, strict=True)
    ]
    configs = [config for _, config in with_lookup(drafting, seed=2)]
    llm = scoring(drafting_llm(tiny_model), 15)
    check_all(reference, prompts, configs, llm.generate(prompts, configs))
    assert llm.engine.stats().drafted_tokens > 0


@pytest.mark.parametrize("overlapped", [False, True])
def test_a_step_that_fails_is_told_of_once(
    tiny_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, overlapped: bool
) -> None:
    """Its requests are computed apart, each with what is to be reported on."""
    prompts, configs = requests(9, new_tokens=2)
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=400) if overlapped else small_llm(tiny_model)
    steps = 0

    def fail_thrice(plan: Plan, compute: Callable[[], StepLogits]) -> StepLogits:
        nonlocal steps
        steps += plan.num_scored > 0 and len(plan.by_request()) > 1
        if steps in (1, 3, 5) and len(plan.by_request()) > 1:
            raise torch.OutOfMemoryError("no memory for a step")
        return compute()

    around_forward(scoring(llm, 30), fail_thrice)
    check_all(reference, prompts, configs, llm.generate(prompts, configs))
    assert llm.engine.stats().step_failures >= 3
