"""A draft head changes how fast an answer comes, never what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.generation import GenerationConfig
from server.scheduling.speculation.by_model import Proposal
from tests.checkpoints import tiny_llama
from tests.continuous_batching import heads
from tests.continuous_batching.drafts import KINDS, PROMPT, options
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.heads import drafting, greedy
from tests.continuous_batching.overlapped import RecordedCalls, overlapped_llm
from tests.continuous_batching.reference import Reference, mixed_requests


@pytest.fixture(scope="module")
def circling_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose layers add next to nothing: what it says follows from the newest token."""
    from transformers import AutoModelForCausalLM

    path = tiny_llama(tmp_path_factory.mktemp("circling"))
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 0.002
            layer.mlp.down_proj.weight *= 0.002
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def circling(circling_model: Path) -> Reference:
    return Reference(circling_model)


@pytest.fixture(scope="module")
def plain(circling_model: Path) -> dict[str, list[list[int]]]:
    """Answers without drafts."""
    driver = Driver(small_llm(circling_model))
    for kind in KINDS:
        driver.add(kind, PROMPT, options(kind, 0))
    driver.finish()
    return {kind: driver.answers(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def knowing(circling_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that is nearly always right about `circling_model`."""
    return heads.knowing(tmp_path_factory.mktemp("knowing"), circling_model)


@pytest.fixture(scope="module")
def ignorant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that never is."""
    layers = [0, 1, 2]
    return heads.eagle3(tmp_path_factory.mktemp("ignorant"), eagle_aux_hidden_state_layer_ids=layers)


def test_a_head_that_knows_the_answer_saves_steps(circling_model: Path, knowing: Path) -> None:
    llm = small_llm(circling_model, speculation=heads.speculation_by(knowing))
    drafting(llm)
    (drafted,) = llm.generate([[5, 6, 7]], greedy(101))
    stats = llm.engine.stats()
    assert stats.accepted_tokens > 0.8 * stats.drafted_tokens and stats.steps < 40
    (plain,) = small_llm(circling_model).generate([[5, 6, 7]], greedy(101))
    assert drafted.answers[0].token_ids == plain.answers[0].token_ids


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize(
    ("num_blocks", "policy", "prefixes"),
    [(400, "auto", True), (44, "swap", True), (44, "recompute", True), (44, "recompute", False)],
)
def test_all_options_in_one_batch(
    circling_model: Path,
    knowing: Path,
    ignorant: Path,
    plain: dict[str, list[list[int]]],
    num_blocks: int,
    policy: str,
    prefixes: bool,
    knows: bool,
) -> None:
    """Beside beams, which have no drafts; preempted where blocks run out."""
    llm = small_llm(
        circling_model,
        num_blocks=num_blocks,
        watermark=0.0,
        swap_policy=policy,
        enable_prefix_cache=prefixes,
        speculation=heads.speculation_by(knowing if knows else ignorant),
    )
    drafter, driver = drafting(llm), Driver(llm)
    for kind in KINDS:
        driver.add(kind, PROMPT, options(kind, 0))
    for _ in range(30):
        driver.step()
        drafter.check()
    driver.finish()
    assert {kind: driver.answers(kind) for kind in KINDS} == plain
    stats = llm.engine.stats()
    assert stats.drafted_tokens > 100 and (stats.accepted_tokens > 100) == knows
    assert stats.step_failures == 0 and len(drafter._rows) == 0
    drafter.check()


@pytest.mark.parametrize("drafts", ["few slots", "few blocks"])
def test_tokens_are_those_of_transformers(
    circling_model: Path, knowing: Path, circling: Reference, monkeypatch: pytest.MonkeyPatch, drafts: str
) -> None:
    """While requests come and go, and the head has no room for all of them."""
    requests = mixed_requests(circling, 40, seed=11, longest=80, longest_prompt=40)
    if drafts == "few slots":
        monkeypatch.setattr("server.continuous_batching.build_draft.DRAFTED_LINES", 10)
    else:
        monkeypatch.setattr("server.continuous_batching.build_draft.blocks_that_fit", lambda *_: 30)
    llm = small_llm(circling_model, num_blocks=120, speculation=heads.speculation_by(knowing, 3))
    drafter = drafting(llm)
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert circling.contradicted(requests, generations) == []
    stats = llm.engine.stats()
    assert stats.accepted_tokens > 100 and stats.step_failures == 0
    drafter.check()
    llm.engine.check()


def test_resumed_and_cancelled(
    circling_model: Path, knowing: Path, plain: dict[str, list[list[int]]]
) -> None:
    llm = small_llm(circling_model, speculation=heads.speculation_by(knowing))
    drafter, driver = drafting(llm), Driver(llm)
    for kind in ("greedy", "several"):
        emitted = [answer[:cut] for answer, cut in zip(plain[kind], (20, 3, 31), strict=False)]
        driver.add(kind, PROMPT, options(kind, 0), emitted=emitted, stream=True)
    driver.add("cancelled", PROMPT, options("sampled", 0))
    for _ in range(6):
        driver.step()
    assert drafter._rows._rows["cancelled"]
    llm.engine.cancel("cancelled")
    assert "cancelled" not in drafter._rows._rows
    driver.finish()
    for kind in ("greedy", "several"):
        cuts = (20, 3, 31)[: len(plain[kind])]
        assert driver.answers(kind) == [a[cut:] for a, cut in zip(plain[kind], cuts, strict=True)]
    assert llm.engine.stats().accepted_tokens > 20
    drafter.check()


def test_structured_outputs(circling_model: Path, knowing: Path) -> None:
    """A draft goes as far as the grammar allows."""
    form = {"regex": r"(ab ?){12}(cd){2}"}
    config = GenerationConfig(max_new_tokens=100, structured_outputs=form)
    answers = []
    for speculation in ({}, heads.speculation_by(knowing)):
        llm = small_llm(circling_model, speculation=speculation)
        if speculation:
            drafting(llm)
        answers.append([g.answers[0].token_ids for g in llm.generate([PROMPT, [5]], config)])
        llm.engine.check()
    assert answers[0] == answers[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")
@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("num_blocks", [400, 40])
def test_where_steps_overlap(
    circling_model: Path,
    knowing: Path,
    plain: dict[str, list[list[int]]],
    monkeypatch: pytest.MonkeyPatch,
    replayed: bool,
    num_blocks: int,
) -> None:
    """Steps of target and head replayed, and launched."""
    kinds = ("greedy", "penalised", "several", "reported")
    monkeypatch.setattr("server.worker.head_runner.CapturedCalls", RecordedCalls)
    speculation = heads.speculation_by(knowing)
    llm = overlapped_llm(
        circling_model, monkeypatch, num_blocks=num_blocks, replayed=replayed, speculation=speculation
    )
    drafter, driver = drafting(llm), Driver(llm)
    if replayed:
        drafter.runner.capture(64)
    for kind in kinds:
        driver.add(kind, PROMPT, options(kind, 0))
    driver.finish()
    assert {kind: driver.answers(kind) for kind in kinds} == {kind: plain[kind] for kind in kinds}
    stats = llm.engine.stats()
    assert llm.engine.worker.overlaps and stats.accepted_tokens > 200 and stats.step_failures == 0
    drafter.check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")
def test_many_after_a_rest(circling_model: Path, knowing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have more places to compute than a step of the target may have tokens."""
    speculation = heads.speculation_by(knowing)
    sizes = {"num_blocks": 400, "tokens": 24, "chunk": 16, "beams": 24, "max_length": 128}
    llm = overlapped_llm(circling_model, monkeypatch, speculation=speculation, **sizes)
    drafter = drafting(llm)
    propose, steps = drafter.propose, [0]

    def rest(sequences: Any, count: int) -> Any:
        steps[0] += 1
        if steps[0] < 40:
            return Proposal([[] for _ in sequences], 0.0, caught_up=True)
        return propose(sequences, count)

    monkeypatch.setattr(drafter, "propose", rest)
    llm.generate([[5 + i, 7] for i in range(4)], greedy(90))
    assert not drafter._broken and llm.engine.stats().accepted_tokens > 20


def test_a_head_that_fails_costs_no_answer(
    circling_model: Path, knowing: Path, plain: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("draft", "keep", "follow"):
        llm = small_llm(circling_model, speculation=heads.speculation_by(knowing))
        drafter, driver = drafting(llm), Driver(llm)
        driver.add("greedy", PROMPT, options("greedy", 0))
        for _ in range(4):
            driver.step()
        drafted = llm.engine.stats().drafted_tokens

        def fail(*_: Any) -> None:
            raise torch.OutOfMemoryError("no memory for a draft")

        monkeypatch.setattr(drafter.runner, place, fail)
        driver.add("penalised", PROMPT[::-1], options("penalised", 0))
        driver.finish()
        assert driver.answers("greedy") == plain["greedy"]
        assert llm.engine.stats().step_failures == 0 and len(drafter._rows) == 0
        assert llm.engine.stats().drafted_tokens < drafted + 20
        drafter.check()


def test_a_head_that_guesses_wrong_rests(circling_model: Path, ignorant: Path) -> None:
    llm = small_llm(circling_model, speculation=heads.speculation_by(ignorant))
    llm.generate([PROMPT], greedy(400))
    assert 0 < llm.engine.stats().drafted_tokens < 200
