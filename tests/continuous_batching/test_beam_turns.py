"""Beams of which half are computed while the host chooses for the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.continuous_batching.beam_turns import BeamTurns
from server.scheduling.params import SamplingParams
from server.scheduling.plan import Plan
from server.scheduling.request import Request
from server.scheduling.step_time import StepTime
from tests.continuous_batching.overlapped import overlapped_llm
from tests.continuous_batching.reference import Reference, mixed_requests

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")


def by_turns(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Let beams take turns wherever there is room.

    Returns:
        At each launch beside a step under way, the requests with beams that are in both.
    """
    engine, both = llm.engine, list[set[str]]()
    launch = engine._launch

    def beams(plan: Plan) -> set[str]:
        return {s.request.id for s in plan.decodes if s.request.params.uses_beams}

    def noted(plan: Plan, *rest: Any) -> Any:
        under_way = engine._launched
        if under_way is not None and beams(plan) and beams(under_way.plan):
            both.append(beams(plan) & beams(under_way.plan))
        return launch(plan, *rest)

    monkeypatch.setattr(engine, "_launch", noted)
    monkeypatch.setattr("server.continuous_batching.beam_turns.ROWS_APART", 1)
    monkeypatch.setattr(BeamTurns, "_pays", lambda *_: True)
    return both


@on_cpu
@pytest.mark.parametrize("replayed", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("num_blocks", [400, 60])
def test_tokens_are_those_of_transformers(
    tiny_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, num_blocks: int, replayed: bool
) -> None:
    """Of all strategies and sizes, also where there is too little room for turns."""
    requests = mixed_requests(reference, 24, seed=7, longest=50)
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=num_blocks, replayed=replayed)
    both = by_turns(llm, monkeypatch)
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert not reference.contradicted(requests, generations)
    llm.engine.check()
    stats = llm.engine.stats()
    assert stats.step_failures == 0 and stats.cache_usage == 0.0
    assert (stats.preempted_by_swap + stats.preempted_by_recompute > 0) == (num_blocks == 60)
    assert len(both) > 2 and not any(both), "what becomes of beams is known before they go on"


@on_cpu
def test_beams_that_are_cancelled_while_they_are_computed_leave_nothing(
    tiny_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=400)
    by_turns(llm, monkeypatch)
    engine, step, gone = llm.engine, llm.engine.step, set[str]()

    def cancelling() -> Any:
        output = step()
        under_way = engine._launched
        if len(gone) < 3 and under_way is not None and under_way.plan.decodes:
            request = under_way.plan.decodes[0].request
            if request.params.uses_beams and request.id not in gone:
                gone.add(request.id)
                engine.cancel(request.id)
                output.done.append(request.id)
        return output

    monkeypatch.setattr(engine, "step", cancelling)
    prompts = [[5 + i, 6, 7] for i in range(8)]
    config = GenerationConfig(num_beams=3, max_new_tokens=12, ignore_eos=True)
    generations = llm.generate(prompts, config)
    assert len(gone) == 3
    left = [(p, g) for p, g in zip(prompts, generations, strict=True) if g.answers]
    assert len(left) == 5
    assert not reference.contradicted([(p, config) for p, _ in left], [g for _, g in left])
    engine.check()
    assert engine.stats().cache_usage == 0.0


def turns_of(beams: int, others: int, *, room: int = 10_000, slides: bool = False) -> BeamTurns:
    """The `BeamTurns` of an engine with `beams` beams, four per request, and `others` other sequences."""
    searches = [
        Request(f"b{i}", [1], SamplingParams(max_new_tokens=9, num_beams=4), 0.0) for i in range(beams // 4)
    ]
    alone = [Request(f"a{i}", [1], SamplingParams(max_new_tokens=9), 0.0) for i in range(others)]
    return BeamTurns(
        SimpleNamespace(
            queues=SimpleNamespace(running=[*searches, *alone]),
            cache=SimpleNamespace(slides=slides, has_blocks=lambda count: count <= room),
            step_time=StepTime(),
        )  # type: ignore[arg-type]
    )


def observe(turns: BeamTurns, rows: int, seconds: float) -> None:
    plan = Plan(decodes=[None] * rows)  # type: ignore[list-item]
    for _ in range(5):
        turns._scheduler.step_time.observe(plan, seconds)


def test_beams_take_turns_where_that_is_faster() -> None:
    turns = turns_of(400, 0)
    assert turns.most() is None, "nothing is known of steps yet"
    observe(turns, 400, 16e-3)
    turns.observe(6e-3)
    assert turns.most() == 208, "what half of them takes is to be tried, without padding"
    observe(turns, 208, 9e-3)
    assert turns.most() == 208
    for _ in range(100):
        turns.observe(1e-3)
    assert turns.most() is None, "two steps take 18 ms, one and the wait 17"


def test_turns_need_room_and_blocks_that_stay() -> None:
    for turns, most in (
        (turns_of(400, 9), 208),
        (turns_of(16, 9), None),
        (turns_of(400, 9, room=408), None),
        (turns_of(400, 9, slides=True), None),
        (turns_of(0, 9), None),
    ):
        observe(turns, 409, 16e-3)
        turns.observe(6e-3)
        assert turns.most() == most
