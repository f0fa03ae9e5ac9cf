"""The engine that plans ahead of its tokens, on the CPU (`overlapped`)."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.generation import GenerationConfig
from server.continuous_batching.beam_turns import BeamTurns
from server.ops.triton.attention import TritonAttention
from server.ops.triton.layer_ops import TritonLayerOps
from server.sampling.step_logits import StepLogits
from server.scheduling.plan import Plan
from server.scheduling.step import StepInput
from server.worker.decode_graphs import Size
from server.worker.runner import PagedModelRunner
from tests.checkpoints import tiny_llama
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.overlapped import compute_with, overlapped_llm
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.sampling.draws import worst_miss

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")


@pytest.mark.parametrize("beams", [False, True])
@pytest.mark.parametrize("num_blocks", [400, 40])
def test_tokens_are_those_of_transformers(
    tiny_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, num_blocks: int, beams: bool
) -> None:
    """Ends by token, string and length, found out one step late; preemption of sequences whose newest
    token that has not been read; with beams, steps that wait and steps that do not, by turns."""
    requests = mixed_requests(reference, 24, seed=5, longest=50)
    if not beams:
        single = {"num_beams": 1, "num_return_sequences": 1}
        requests = [(prompt, config.model_copy(update=single)) for prompt, config in requests]
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=num_blocks)
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert not reference.contradicted(requests, generations)
    llm.engine.check()
    stats = llm.engine.stats()
    assert stats.step_failures == 0
    assert stats.cache_usage == 0.0
    assert (stats.preempted_by_swap + stats.preempted_by_recompute > 0) == (num_blocks == 40)


def test_beams_that_wait_for_room_keep_no_step_waiting(
    tiny_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are waited for from their first step to their last; before and after it steps overlap."""
    monkeypatch.setattr(BeamTurns, "most", lambda turns: None)
    beams = GenerationConfig(num_beams=4, max_new_tokens=6)
    alone = GenerationConfig(max_new_tokens=12)
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12], [13, 14]]
    configs = [alone, alone, beams, alone]
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=400, beams=4)
    engine, seen = llm.engine, []
    step = engine.step

    def noted() -> Any:
        output = step()
        begun = any(request.params.uses_beams for request in engine.scheduler.queues.running)
        seen.append((begun, engine._overlaps(None)))
        return output

    monkeypatch.setattr(engine, "step", noted)
    generations = llm.generate(prompts, configs)
    assert not reference.contradicted(list(zip(prompts, configs, strict=True)), generations)
    assert all(overlaps is not begun for begun, overlaps in seen)
    assert [key for key, _ in groupby(overlaps for _, overlaps in seen)][:2] == [True, False]


def test_decodes_stand_longest_context_first(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those of a request together, as beams must; what they answer is tested above."""
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=400)
    steps: list[list[tuple[int, str]]] = []
    build_step = llm.engine._builder.build

    def note(plan: Plan) -> StepInput:
        step = build_step(plan)
        assert step.decode_positions.tolist() == [s.num_computed for s in plan.decodes]
        steps.append([(s.num_computed, s.request.id) for s in plan.sampled()])
        return step

    monkeypatch.setattr(llm.engine._builder, "build", note)
    configs = [GenerationConfig(max_new_tokens=12, ignore_eos=True, num_beams=n) for n in (1, 3, 1, 1)]
    llm.generate([[5] * 4, [6] * 9, [7] * 9, [8] * 20], configs)
    full = [step for step in steps if len(step) == 6]
    assert len(full) > 5
    for step in full:
        lengths = [length for length, _ in step]
        assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 2
        assert len(list(groupby(step, key=itemgetter(1)))) == 4


def test_a_replay_that_fails_loses_no_news_of_block_tables(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any step, also where the table is to be written: the step is repeated with what was to be sent."""
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=100, replayed=True)
    runner = llm.engine.worker.runner
    assert isinstance(runner, PagedModelRunner) and runner._graphs is not None
    replay = runner._graphs.replay
    until_failure = 0

    def fail_once(size: Size) -> StepLogits:
        nonlocal until_failure
        until_failure -= 1
        if until_failure == 0:
            raise torch.OutOfMemoryError("no memory for a graph")
        return replay(size)

    monkeypatch.setattr(runner._graphs, "replay", fail_once)
    config = GenerationConfig(max_new_tokens=12, ignore_eos=True)
    answers = []
    for until_failure in range(12):  # noqa: B007 - counted down in the function above
        generations = llm.generate([[5, 6, 7], [11, 4, 3, 9]], [config, config])
        answers.append([generation.answers[0].token_ids for generation in generations])
    assert llm.engine.stats().step_failures == 11
    assert all(answer == answers[0] for answer in answers)


def test_the_kernels_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in Triton's interpreter: prompts, decodes of several rows and of one, beams, samples."""
    model = tiny_llama(tmp_path, layers=1, hidden=128, heads=2, kv_heads=1)
    compute_with(monkeypatch, TritonAttention, TritonLayerOps())
    llm, reference = small_llm(model, num_blocks=60, block_size=16), Reference(model)
    runner = llm.engine.worker.runner
    assert isinstance(runner, PagedModelRunner)
    runner.warm_up(20)
    assert not runner.timings.prompts, "compiling is no cost of prompts"
    configs = [
        GenerationConfig(max_new_tokens=3, num_beams=2, num_return_sequences=2),
        GenerationConfig(max_new_tokens=4, repetition_penalty=1.3),
        GenerationConfig(max_new_tokens=3),
    ]
    requests = [([5 + i, 7, 9] * (1 + 3 * i), config) for i, config in enumerate(configs)]
    for together in (requests, requests[:1]):  # beams among others, and alone
        generations = llm.generate([prompt for prompt, _ in together], [c for _, c in together])
        assert not reference.contradicted(together, generations)
    config = GenerationConfig(max_new_tokens=2, do_sample=True, temperature=0.8, seed=5)
    (alone,) = llm.generate([[5, 7, 9]], [config])
    assert worst_miss(reference.model, [[5, 7, 9]], [config], [alone.answers[0].token_ids]) < 1e-3
    llm.engine.check()


def test_the_next_step_is_launched_before_the_last_ones_tokens_are_read(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=100)
    events: list[str] = []
    runner = llm.engine.worker.runner
    forward, collect = runner.forward, llm.engine._collector.collect
    monkeypatch.setattr(runner, "forward", lambda step: events.append("launch") or forward(step))
    monkeypatch.setattr(
        llm.engine._collector, "collect", lambda *args: events.append("read") or collect(*args)
    )
    llm.generate([[5, 6, 7]], GenerationConfig(max_new_tokens=4, ignore_eos=True))
    assert events == ["launch", "launch", "read", "launch", "read", "launch", "read", "read"]
