"""A draft model changes how fast an answer comes, never what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from server.continuous_batching.draft_model import DraftModel
from server.scheduling.speculation.by_model import ModelSpeculator
from tests.checkpoints import tiny_llama
from tests.continuous_batching.drafts import KINDS, PROMPT, FreeDrafts, FreeModel, options
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.overlapped import overlapped_llm
from tests.continuous_batching.reference import Reference, mixed_requests


def speculation_by(draft: Path, count: int = 4) -> dict[str, Any]:
    return {"draft_model": str(draft), "draft_num_tokens": count}


def drafting(llm: LLM) -> DraftModel:
    """Let `llm` compute every draft it can make; returns its draft model."""
    speculator = llm.engine.scheduler.speculator
    assert isinstance(speculator, ModelSpeculator) and isinstance(speculator._model, DraftModel)
    speculator.cost, speculator.draft_cost = FreeDrafts(), FreeModel()
    return speculator._model


def test_a_model_that_knows_the_answer_saves_steps(looping_model: Path) -> None:
    """All of its guesses are right: a step gives five tokens."""
    llm = small_llm(looping_model, speculation=speculation_by(looping_model))
    drafting(llm)
    config = GenerationConfig(max_new_tokens=101, ignore_eos=True)
    (drafted,) = llm.generate([[5, 6, 7]], config)
    stats = llm.engine.stats()
    assert stats.accepted_tokens == stats.drafted_tokens == 80 and stats.steps == 21
    (plain,) = small_llm(looping_model).generate([[5, 6, 7]], config)
    assert drafted.answers[0].token_ids == plain.answers[0].token_ids
    assert llm.capabilities["speculation"]["name"] == "draft model, prompt lookup"


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize("num_blocks", [400, 44])
def test_all_options_in_one_batch(
    looping_model: Path, tiny_model: Path, plain: dict[str, list[list[int]]], num_blocks: int, knows: bool
) -> None:
    """Beside beams, which have no drafts; preempted where blocks run out."""
    draft = looping_model if knows else tiny_model
    llm = small_llm(looping_model, num_blocks=num_blocks, watermark=0.0, speculation=speculation_by(draft))
    model, driver = drafting(llm), Driver(llm)
    for kind in KINDS:
        driver.add(kind, PROMPT, options(kind, 0))
    for _ in range(4):
        driver.step()
        model.check()
    driver.finish()
    assert {kind: driver.answers(kind) for kind in KINDS} == plain
    stats = llm.engine.stats()
    assert stats.drafted_tokens > 100 and (stats.accepted_tokens > 100) == knows
    assert stats.step_failures == 0 and not model._rows
    model.check()


@pytest.mark.parametrize("drafts", ["few slots", "few blocks"])
def test_tokens_are_those_of_transformers(
    looping_model: Path, looping: Reference, monkeypatch: pytest.MonkeyPatch, drafts: str
) -> None:
    """While requests come and go, and the draft model has no room for all of them."""
    requests = mixed_requests(looping, 40, seed=11, longest=80, longest_prompt=40)
    if drafts == "few slots":
        monkeypatch.setattr("server.continuous_batching.build_draft.DRAFTED_LINES", 10)
    else:
        monkeypatch.setattr("server.continuous_batching.build_draft.blocks_that_fit", lambda *_: 30)
    llm = small_llm(looping_model, num_blocks=120, speculation=speculation_by(looping_model, 3))
    model = drafting(llm)
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert looping.contradicted(requests, generations) == []
    stats = llm.engine.stats()
    assert stats.accepted_tokens > 100 and stats.step_failures == 0
    model.check()
    llm.engine.check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")
def test_where_steps_overlap(
    looping_model: Path, plain: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ("greedy", "penalised", "several", "reported")
    llm = overlapped_llm(
        looping_model, monkeypatch, num_blocks=400, speculation=speculation_by(looping_model)
    )
    model, driver = drafting(llm), Driver(llm)
    for kind in kinds:
        driver.add(kind, PROMPT, options(kind, 0))
    driver.finish()
    assert {kind: driver.answers(kind) for kind in kinds} == {kind: plain[kind] for kind in kinds}
    assert llm.engine.worker.overlaps and llm.engine.stats().accepted_tokens > 100
    model.check()


def test_prompt_lookup_goes_first(looping_model: Path, tiny_model: Path) -> None:
    """A request that asks for it gets it where its text comes again."""
    llm = small_llm(looping_model, speculation=speculation_by(tiny_model))
    drafting(llm)
    config = GenerationConfig(max_new_tokens=100, ignore_eos=True, prompt_lookup_num_tokens=8)
    (drafted,) = llm.generate([PROMPT], config)
    (plain,) = small_llm(looping_model).generate([PROMPT], config)
    assert drafted.answers[0].token_ids == plain.answers[0].token_ids
    assert llm.engine.stats().accepted_tokens > 40


def test_a_draft_model_that_fails_costs_no_answer(
    looping_model: Path, plain: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = small_llm(looping_model, speculation=speculation_by(looping_model))
    model, driver = drafting(llm), Driver(llm)
    driver.add("greedy", PROMPT, options("greedy", 0))
    for _ in range(4):
        driver.step()

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory for a draft")

    monkeypatch.setattr(model._worker, "launch", fail)
    driver.finish()
    assert driver.answers("greedy") == plain["greedy"]
    assert llm.engine.stats().step_failures == 0
    model.check()


def test_a_model_that_guesses_wrong_rests(looping_model: Path, tiny_model: Path) -> None:
    llm = small_llm(looping_model, speculation=speculation_by(tiny_model))
    llm.generate([PROMPT], GenerationConfig(max_new_tokens=400, ignore_eos=True))
    stats = llm.engine.stats()
    assert 0 < stats.drafted_tokens < 200


def test_another_tokenizer_is_refused(looping_model: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path)
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"</s>"', '"<end>"'))
    with pytest.raises(
        ModelError, match=r"speculation_config\.draft_model: the tokenizer of .* other tokens"
    ):
        small_llm(looping_model, speculation=speculation_by(other))


def test_ranks_are_refused(looping_model: Path) -> None:
    with pytest.raises(ModelError, match=r"speculation_config\.draft_model is not supported"):
        LLM(
            looping_model,
            model_loading_config={"torch_dtype": "float32", "device": "cpu"},
            parallel_config={"tensor_parallel_size": 2},
            speculation_config=speculation_by(looping_model),
        )
