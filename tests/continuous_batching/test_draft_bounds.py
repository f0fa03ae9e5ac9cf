"""What drafts report, what they may touch, and who asks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.sampling.step_logits import StepLogits
from server.scheduling.params import PromptLookup, SamplingParams
from server.scheduling.plan import Plan
from server.scheduling.request import Request
from tests.continuous_batching.drafts import (
    PROMPT,
    FreeDrafts,
    Options,
    drafting_llm,
    options,
)
from tests.continuous_batching.driver import Driver, around_forward
from tests.continuous_batching.reference import Reference


def test_reports_are_those_of_the_tokens(looping_model: Path) -> None:
    reports = []
    for drafted in (0, 8):
        llm = drafting_llm(looping_model)
        config = GenerationConfig(
            max_new_tokens=50, ignore_eos=True, logprobs=2, prompt_lookup_num_tokens=drafted
        )
        answer = llm.generate([PROMPT], config)[0].answers[0]
        assert answer.logprobs is not None and [r.token_id for r in answer.logprobs] == answer.token_ids
        reports.append([(r.token_id, r.logprob, r.top) for r in answer.logprobs])
    assert llm.engine.stats().accepted_tokens > 10
    for (token, logprob, top), (other, value, others) in zip(*reports, strict=True):
        assert token == other and logprob == pytest.approx(value, abs=1e-5)
        assert [t for t, _ in top] == [t for t, _ in others]


def test_streams_get_one_token_after_the_other(
    looping_model: Path, plain: dict[str, list[list[int]]]
) -> None:
    llm = drafting_llm(looping_model)
    params = SamplingParams.of(GenerationConfig(**options("greedy", 8)), model_eos=())
    assert llm.engine.add(Request("stream", PROMPT, params, 0.0, stream=True)) is None
    steps = []
    while llm.engine.has_work:
        steps.append(llm.engine.step().deltas)
    deltas = [delta for step in steps for delta in step]
    assert all(len(delta.token_ids) == 1 for delta in deltas)
    assert [delta.token_ids[0] for delta in deltas] == plain["greedy"][0]
    assert [delta.finish_reason for delta in deltas] == [None] * 59 + ["length"]
    assert max(len(step) for step in steps) > 3


# -- what drafts may touch ---------------------------------------------------------------------------


def test_blocks_of_wrong_guesses_are_given_back_and_never_found(
    tiny_model: Path, reference: Reference
) -> None:
    """After every step a sequence holds the blocks of its tokens alone; a later prompt that goes the
    same way finds only what was really computed."""
    llm = drafting_llm(tiny_model, block_size=4)
    driver = Driver(llm)
    prompt = [40, 41, 42, 43, 44] * 4
    driver.add("first", prompt, {"max_new_tokens": 60, "ignore_eos": True, "prompt_lookup_num_tokens": 12})
    cache, pool = llm.engine.cache, llm.engine.cache.groups[0].device
    while llm.engine.has_work:
        driver.step()
        for request in llm.engine.scheduler.queues.running:
            for sequence in request.sequences:
                assert len(sequence.tables[0].blocks) == -(-sequence.num_computed // cache.block_size)
        llm.engine.check()
    stats = llm.engine.stats()
    assert stats.drafted_tokens - stats.accepted_tokens > 20
    assert pool.num_cached == (len(prompt) + 60 - 1) // cache.block_size
    answer = driver.answers("first")[0]
    longer = [*prompt, *answer[:50]]
    config = GenerationConfig(max_new_tokens=30)
    assert [a.token_ids for a in llm.generate([longer], config)[0].answers] == reference.answers(
        longer, config
    )
    assert llm.engine.stats().prefix_hits >= 60


def test_drafts_take_no_block_from_a_sequence(looping_model: Path) -> None:
    """With every block in use, the oldest request drafts no further than its own last block."""
    llm = drafting_llm(
        looping_model, num_blocks=12, num_blocks_cpu=0, watermark=0.0, enable_prefix_cache=False
    )
    driver = Driver(llm)
    lookup = {"ignore_eos": True, "prompt_lookup_num_tokens": 64}
    driver.add("one", PROMPT, {"max_new_tokens": 38, **lookup})
    driver.add("two", PROMPT, {"max_new_tokens": 38, **lookup})
    driver.finish()
    stats = llm.engine.stats()
    assert stats.accepted_tokens > 0
    assert stats.preempted_by_recompute == stats.preempted_by_swap == 0
    assert driver.answers("one") == driver.answers("two")


def test_the_budget_of_a_step_holds(looping_model: Path) -> None:
    llm = drafting_llm(looping_model, beams=8, tokens=20, chunk=20)
    sizes = []

    def watched(plan: Plan, compute: Callable[[], StepLogits]) -> StepLogits:
        sizes.append(plan.num_tokens)
        return compute()

    around_forward(llm, watched)
    config = GenerationConfig(max_new_tokens=60, ignore_eos=True, prompt_lookup_num_tokens=30)
    llm.generate([[i, i + 1, i] for i in range(3, 9)], config)
    assert max(sizes) == 20


def test_a_failed_step_is_run_again_without_drafts(
    looping_model: Path, plain: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = drafting_llm(looping_model)
    failed = []

    def forward(plan: Plan, compute: Callable[[], StepLogits]) -> StepLogits:
        if len(plan.drafts) > 1 and sum(len(d.tokens) for d in plan.drafts) > 8:
            failed.append(plan)
            raise RuntimeError("too many at once")
        return compute()

    around_forward(llm, forward)
    driver = Driver(llm)
    for name in ("one", "two"):
        driver.add(name, PROMPT, options("greedy", 6))
    driver.finish()
    assert failed and not driver.failures
    assert driver.answers("one") == driver.answers("two") == plain["greedy"]


# -- who asks ----------------------------------------------------------------------------------------


def test_the_server_decides_for_those_who_do_not(looping_model: Path) -> None:
    speculation = {"prompt_lookup_num_tokens": 8, "max_matching_ngram_size": 2}
    default = PromptLookup(8, 2)

    def lookup(**config: Any) -> PromptLookup:
        return SamplingParams.of(GenerationConfig(**config), (), default).prompt_lookup

    assert lookup() == default
    assert lookup(prompt_lookup_num_tokens=0) == PromptLookup(0, 2)
    assert lookup(prompt_lookup_num_tokens=3, max_matching_ngram_size=5) == PromptLookup(3, 5)
    assert lookup(num_beams=2) == PromptLookup()
    llm = LLM(
        looping_model,
        model_loading_config={"torch_dtype": "float32", "device": "cpu"},
        cache_config={"num_blocks": 200},
        speculation_config=speculation,
    )
    llm.engine.scheduler.speculator.cost = FreeDrafts()
    llm.generate([PROMPT], GenerationConfig(max_new_tokens=40, ignore_eos=True))
    assert llm.engine.stats().accepted_tokens > 0


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"prompt_lookup_num_tokens": 4, "num_beams": 2}, "num_beams"),
        ({"prompt_lookup_num_tokens": 65}, "prompt_lookup_num_tokens"),
        ({"prompt_lookup_num_tokens": -1}, "prompt_lookup_num_tokens"),
        ({"max_matching_ngram_size": 0}, "max_matching_ngram_size"),
    ],
)
def test_what_cannot_be_is_refused(config: Options, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        GenerationConfig(**config)
