"""Drafts where steps overlap and tokens stay on the device (`overlapped`): the same answers, sooner."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.sampling.step_logits import StepLogits
from server.worker.decode_graphs import DRAFTED_SIZES, Size
from server.worker.runner import PagedModelRunner
from tests.continuous_batching.drafts import (
    KINDS,
    PROMPT,
    FreeDrafts,
    Options,
    options,
    repetitive,
    with_lookup,
)
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.overlapped import choice_of, overlapped_llm
from tests.continuous_batching.reference import Reference, mixed_requests

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")


def drafting(
    model: Path, monkeypatch: pytest.MonkeyPatch, *, replayed: bool = False, num_blocks: int = 400
) -> LLM:
    """An engine that computes every draft it can make."""
    llm = overlapped_llm(model, monkeypatch, num_blocks=num_blocks, replayed=replayed)
    llm.engine.scheduler.speculator.cost = FreeDrafts()
    return llm


@pytest.mark.parametrize(
    ("kind", "replayed"),
    [("greedy", False), ("greedy", True), ("penalised", False), ("penalised", True), ("reported", True)],
)
def test_an_option_alone(
    looping_model: Path,
    plain: dict[str, list[list[int]]],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    replayed: bool,
) -> None:
    llm = drafting(looping_model, monkeypatch, replayed=replayed)
    driver = Driver(llm)
    driver.add(kind, PROMPT, options(kind, 6))
    driver.finish()
    assert driver.answers(kind) == plain[kind]
    stats = llm.engine.stats()
    assert stats.accepted_tokens > 10 and stats.step_failures == 0
    assert stats.steps < 62 - stats.accepted_tokens / len(plain[kind]) + 8


@pytest.mark.parametrize("replayed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_options_in_one_batch(
    looping_model: Path, plain: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch, replayed: bool
) -> None:
    kinds = [kind for kind in KINDS if kind != "beams"]
    llm = drafting(looping_model, monkeypatch, replayed=replayed)
    driver = Driver(llm)
    for kind in kinds:
        given = options(kind, 6) | {"max_new_tokens": 24}
        driver.add(kind, PROMPT, given | {"min_new_tokens": min(given.get("min_new_tokens", 0), 24)})
    driver.finish()
    for kind in kinds:
        assert driver.answers(kind) == [answer[:24] for answer in plain[kind]]
    assert llm.engine.stats().accepted_tokens > 50 and llm.engine.stats().step_failures == 0


def test_beside_beams(
    looping_model: Path, plain: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps wait for these; the drafts of others go on."""
    llm = drafting(looping_model, monkeypatch)
    driver = Driver(llm)
    for kind in ("beams", "greedy"):
        driver.add(kind, PROMPT, options(kind, 6))
    driver.finish()
    assert {kind: driver.answers(kind) for kind in ("beams", "greedy")} == {
        kind: plain[kind] for kind in ("beams", "greedy")
    }
    assert llm.engine.stats().accepted_tokens > 20 and llm.engine.stats().step_failures == 0


def test_tokens_are_those_of_transformers(
    looping_model: Path, looping: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends of every kind, preemption, and requests that come while others draft: prompts beside drafts."""
    requests = mixed_requests(looping, 10, seed=11, longest=40, longest_prompt=40)
    requests = with_lookup(requests[:5] + repetitive(looping, requests[5:], seed=12), seed=13)
    llm = drafting(looping_model, monkeypatch, num_blocks=40)
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert looping.contradicted(requests, generations) == []
    stats = llm.engine.stats()
    assert stats.accepted_tokens > 10 and stats.drafted_tokens > stats.accepted_tokens
    assert stats.preempted_by_swap + stats.preempted_by_recompute > 0 and stats.step_failures == 0
    assert stats.cache_usage == stats.host_cache_usage == 0.0
    llm.engine.check()


def test_a_form_holds(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each drafted token has a mask of its own, also where the draft crosses the end of the form."""
    form: Options = {"structured_outputs": {"regex": r"(ab ?){12}(cd){2}"}, "max_new_tokens": 100}
    llm = drafting(tiny_model, monkeypatch)
    for given in (form, form | {"do_sample": True, "seed": 3}):
        plain, drafted = (
            llm.generate([[5, 6]], GenerationConfig(**given, prompt_lookup_num_tokens=count))[0].answers[0]
            for count in (0, 8)
        )
        assert plain.token_ids == drafted.token_ids and plain.finish_reason == "stop"
    assert llm.engine.stats().accepted_tokens > 5


def test_a_step_that_fails_is_run_again_without_drafts(
    looping_model: Path, plain: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, history and counts are as they were before it, whatever it wrote meanwhile."""
    llm = drafting(looping_model, monkeypatch, replayed=True)
    choose, failed = choice_of(llm).choose, 0

    def fail_at_drafts(forward: StepLogits, *others: object) -> object:
        nonlocal failed
        tokens = choose(forward, *others)
        if forward.drafts is not None and failed < 3:
            failed += 1
            raise torch.OutOfMemoryError("no memory for a report")
        return tokens

    monkeypatch.setattr(choice_of(llm), "choose", fail_at_drafts)
    driver = Driver(llm)
    for kind in ("greedy", "penalised"):
        driver.add(kind, PROMPT, options(kind, 6))
    driver.finish()
    assert llm.engine.stats().step_failures == failed == 3
    assert {kind: driver.answers(kind) for kind in ("greedy", "penalised")} == {
        kind: plain[kind] for kind in ("greedy", "penalised")
    }


def test_a_request_that_is_cancelled_in_a_step_with_drafts(
    looping_model: Path, plain: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = drafting(looping_model, monkeypatch)
    for steps in (5, 9):
        driver = Driver(llm)
        driver.add("stays", PROMPT, options("greedy", 6))
        driver.add("goes", PROMPT, options("greedy", 6))
        for _ in range(steps):
            driver.step()
        llm.engine.cancel("goes")
        driver.finish()
        assert driver.answers("stays") == plain["greedy"]


def test_steps_overlap_where_nothing_comes_twice(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for drafts loses nothing while there are none to be had."""
    llm = drafting(tiny_model, monkeypatch)
    under_way: list[bool] = []
    schedule = llm.engine.scheduler.schedule

    def note(now: float, **options: float) -> object:
        under_way.append(llm.engine._launched is not None)
        return schedule(now, **options)

    monkeypatch.setattr(llm.engine.scheduler, "schedule", note)
    new: Options = {"do_sample": True, "temperature": 50.0, "seed": 1}  # hardly any of its tokens comes twice
    config = GenerationConfig(max_new_tokens=30, ignore_eos=True, prompt_lookup_num_tokens=6, **new)
    llm.generate([[5, 6, 7]], config)
    assert under_way.count(True) > 24


def test_a_server_drafts_for_those_who_do_not_ask(
    looping_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlapped_llm(looping_model, monkeypatch, num_blocks=50)  # computes as a GPU from here on
    llm = LLM(
        looping_model,
        model_loading_config={"torch_dtype": "float32", "device": "cpu"},
        cache_config={"num_blocks": 100},
        speculation_config={"prompt_lookup_num_tokens": 6},
    )
    llm.engine.scheduler.speculator.cost = FreeDrafts()
    assert llm.capabilities["speculation"]["name"] == "prompt lookup" and llm.engine.worker.overlaps
    llm.generate([PROMPT], GenerationConfig(max_new_tokens=40, ignore_eos=True))
    assert llm.engine.stats().accepted_tokens > 10


def test_steps_with_drafts_are_replayed(looping_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a prompt is computed beside them; padded to the next of few sizes."""
    llm = drafting(looping_model, monkeypatch, replayed=True)
    runner = llm.engine.worker.runner
    assert isinstance(runner, PagedModelRunner) and runner._graphs is not None
    replay, sizes = runner._graphs.replay, list[Size]()

    def note(size: Size) -> StepLogits:
        sizes.append(size)
        return replay(size)

    monkeypatch.setattr(runner._graphs, "replay", note)
    llm.generate([PROMPT, PROMPT], GenerationConfig(**options("greedy", 10)))
    drafted = [size.lines for size in sizes if size.drafted]
    assert drafted and set(drafted) <= set(DRAFTED_SIZES)
    assert len(sizes) == llm.engine.stats().steps - 1
