"""Drafts change how fast an answer comes, never what it is."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.continuous_batching.decoding.params import PromptLookup, SamplingParams
from server.continuous_batching.scheduler.plan import Plan
from server.continuous_batching.scheduler.request import Request
from tests.continuous_batching.drafts import (
    FreeDrafts,
    Options,
    Requests,
    drafting_llm,
    repetitive,
    with_lookup,
)
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.models import tiny_llama


@pytest.fixture(scope="module")
def looping_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that mostly says one of some fifty tokens, the next one following from the last:
    it soon walks in circles, and leaves them now and then."""
    from transformers import AutoModelForCausalLM

    path = tiny_llama(tmp_path_factory.mktemp("looping"))
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 0.05
            layer.mlp.down_proj.weight *= 0.05
        model.lm_head.weight[200:250] *= 3.0
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def looping(looping_model: Path) -> Reference:
    return Reference(looping_model)


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

PROMPT = [9, 8, 7, 6, 9, 8, 7, 6, 30, 31]
KINDS: dict[str, Options] = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 0.3, "seed": 5},
    "several": {"do_sample": True, "temperature": 0.4, "seed": 6, "n": 3},
    "filtered": {"do_sample": True, "temperature": 0.5, "top_k": 5, "top_p": 0.9, "seed": 7},
    "penalised": {"repetition_penalty": 1.02, "presence_penalty": 0.05, "frequency_penalty": 0.01},
    "worn out": {"logit_bias": {"40": 40.0, "41": 36.5, "42": 35.0}, "frequency_penalty": 1.0},
    "held open": {"min_new_tokens": 30, "eos_token_id": list(range(3, 200))},
    "biased": {"logit_bias": {"40": 2.0, "41": -5.0}},
    "reported": {"logprobs": 3},
    "beams": {"num_beams": 3},
}


def options(kind: str, drafted: int) -> Options:
    lookup = {} if kind == "beams" else {"prompt_lookup_num_tokens": drafted}
    return {"max_new_tokens": 60, "ignore_eos": "eos_token_id" not in KINDS[kind]} | KINDS[kind] | lookup


@pytest.fixture(scope="module")
def plain(looping_model: Path) -> dict[str, list[list[int]]]:
    """Answers without drafts."""
    driver = Driver(small_llm(looping_model))
    for kind in KINDS:
        driver.add(kind, PROMPT, options(kind, 0))
    driver.finish()
    return {kind: driver.answers(kind) for kind in KINDS}


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
    for request in list(driver.engine.scheduler.running):
        driver.engine.scheduler.recompute(request)
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
    cache, pool = llm.engine.cache, llm.engine.cache.device
    while llm.engine.has_work:
        driver.step()
        for request in llm.engine.scheduler.running:
            for sequence in request.sequences:
                assert len(sequence.blocks) == -(-sequence.num_computed // cache.block_size)
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


def test_drafts_take_no_block_from_anybody(looping_model: Path) -> None:
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
    forward = llm.engine.runner.forward

    def watched(plan: Plan) -> Any:
        sizes.append(plan.num_tokens)
        return forward(plan)

    llm.engine.runner.forward = watched  # type: ignore[method-assign]
    config = GenerationConfig(max_new_tokens=60, ignore_eos=True, prompt_lookup_num_tokens=30)
    llm.generate([[i, i + 1, i] for i in range(3, 9)], config)
    assert max(sizes) == 20


def test_a_failed_step_is_run_again_without_drafts(
    looping_model: Path, plain: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = drafting_llm(looping_model)
    runner = llm.engine.runner
    healthy, failed = runner.forward, []

    def forward(plan: Plan) -> Any:
        if len(plan.drafts) > 1 and sum(len(d.tokens) for d in plan.drafts) > 8:
            failed.append(plan)
            raise RuntimeError("too many at once")
        return healthy(plan)

    monkeypatch.setattr(runner, "forward", forward)
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
    assert llm.engine.scheduler.speculator is not None
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
