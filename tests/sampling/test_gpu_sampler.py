"""Tokens chosen on the device, of steps that do not wait for the host: options, beams, failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from protocol.generation import GenerationConfig
from server.sampling import beam_continuations as continuations
from server.sampling.gpu_sampler import GpuSampler
from server.sampling.sampling_state import SamplingState, table_bytes
from server.sampling.token_table import TokenTable
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.overlapped import choice_of, overlapped_llm
from tests.continuous_batching.reference import Reference, reporting_beams
from tests.sampling.draws import worst_miss

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")


@pytest.mark.parametrize("replayed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_options_are_applied_on_the_device(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, replayed: bool
) -> None:
    """Filters, penalties, biases and reports of steps that do not wait are those of steps that do."""
    options: list[dict[str, object]] = [
        {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.05}, {"typical_p": 0.7}, {"top_k": 20, "top_p": 0.9},
        {"top_k": 30, "top_p": 0.9, "min_p": 0.02, "temperature": 1.4}, {"typical_p": 0.8, "top_p": 0.9},
        {"top_p": 0.7, "repetition_penalty": 1.5}, {"do_sample": False, "top_k": 2, "top_p": 0.5},
        {"repetition_penalty": 1.5}, {"frequency_penalty": 0.7, "presence_penalty": 0.4}, {},
        {"do_sample": False, "frequency_penalty": 1.0, "logprobs": 2},
        {"logit_bias": {7: 4.0, 9: -100.0}, "logprobs": 0},
        {"min_new_tokens": 8, "eos_token_id": list(range(3, 40)), "logprobs": 3},
    ]  # fmt: skip
    configs = [
        GenerationConfig(**{"max_new_tokens": 12, "do_sample": True, "seed": seed, **chosen})
        for seed, chosen in enumerate(options)
    ]
    prompts = [[5 + index, 7, 9] * (1 + index % 5) for index in range(len(configs))]
    waiting = small_llm(tiny_model).generate(prompts, configs)
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=400, replayed=replayed)
    overlapped = llm.generate(prompts, configs)
    assert bool(choice_of(llm)._captured) == replayed
    assert not llm.engine._dependent and llm.engine.stats().step_failures == 0
    for expected, generation in zip(waiting, overlapped, strict=True):
        (answer,), (reference,) = generation.answers, expected.answers
        assert answer.token_ids == reference.token_ids
        assert (answer.logprobs is None) == (reference.logprobs is None)
        for report, other in zip(answer.logprobs or [], reference.logprobs or [], strict=True):
            assert (report.token_id, [i for i, _ in report.top]) == (
                other.token_id,
                [i for i, _ in other.top],
            )
            assert report.logprob == pytest.approx(other.logprob, abs=1e-5)


@pytest.mark.parametrize("replayed", [False, True])
def test_a_choice_that_fails_is_made_again(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, replayed: bool
) -> None:
    """Request by request, from the tokens and the history before it, whatever it wrote meanwhile."""
    options: list[dict[str, object]] = [
        {"repetition_penalty": 1.3}, {}, {"frequency_penalty": 1.0}, {"do_sample": True, "seed": 3},
    ]  # fmt: skip
    configs = [GenerationConfig(**{"max_new_tokens": 12, "ignore_eos": True, **chosen}) for chosen in options]
    prompts = [[5 + i, 7, 9] * (1 + i) for i in range(len(options))]
    expected = overlapped_llm(tiny_model, monkeypatch, num_blocks=400).generate(prompts, configs)
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=400, replayed=replayed)
    choose, calls = choice_of(llm).choose, 0

    def fail_once(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        tokens: Tensor = choose(*arguments)
        if calls == 5:
            raise torch.OutOfMemoryError("no memory for a report")
        return tokens

    monkeypatch.setattr(choice_of(llm), "choose", fail_once)
    generations = llm.generate(prompts, configs)
    assert llm.engine.stats().step_failures == 1
    assert [g.answers[0].token_ids for g in generations] == [g.answers[0].token_ids for g in expected]


def test_a_choice_that_cannot_be_captured_is_launched(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = GenerationConfig(max_new_tokens=6, ignore_eos=True, repetition_penalty=1.3)
    (expected,) = overlapped_llm(tiny_model, monkeypatch, num_blocks=400).generate([[5, 6, 7]], [config])
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=400, replayed=True)

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory for a graph")

    monkeypatch.setattr(choice_of(llm)._captured, "capture", refuse)
    (generation,) = llm.generate([[5, 6, 7]], [config])
    assert generation.answers[0].token_ids == expected.answers[0].token_ids
    assert llm.engine.stats().step_failures == 0 and "could not be captured" in caplog.text


@pytest.mark.parametrize("most_in_turn", [0, pytest.param(1000, marks=pytest.mark.slow)])
def test_beams_alone(
    tiny_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, most_in_turn: int
) -> None:
    """Continuations and reports of steps in which there are beams only, found by torch and by the kernel."""
    monkeypatch.setattr(continuations, "MOST_IN_TURN", most_in_turn)
    requests = reporting_beams(reference, 4)
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=400)
    generations = llm.generate([prompt for prompt, _ in requests], [config for _, config in requests])
    assert not reference.contradicted(requests, generations)
    assert not reference.misreported(requests, generations)


@pytest.mark.parametrize("replayed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_beams_among_others(
    tiny_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, replayed: bool
) -> None:
    """Whatever options the beams have, other tokens are chosen on the device."""
    held = {"min_new_tokens": 9, "eos_token_id": list(range(3, 200)), "ignore_eos": False}
    options: list[dict[str, object]] = [
        {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "top_p": 0.8, "seed": 3},
        {"repetition_penalty": 1.5, "logprobs": 2}, {"num_beams": 2, "logprobs": 1},
        {"do_sample": True, "temperature": 0.7, "frequency_penalty": 0.5, "seed": 4},
        {"num_beams": 2, "repetition_penalty": 1.4, "logprobs": 1}, {"num_beams": 3, **held}, held,
        {"num_beams": 2, "do_sample": True, "top_k": 9, "seed": 5}, {"num_beams": 2, "logit_bias": {7: 3.0}},
    ]  # fmt: skip
    configs = [GenerationConfig(**{"max_new_tokens": 13, "ignore_eos": True, **chosen}) for chosen in options]
    prompts = [[5 + index, 7, 9] * (1 + index) for index in range(len(configs))]
    waiting = small_llm(tiny_model).generate(prompts, configs)
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=400, replayed=replayed)
    monkeypatch.setattr(llm.engine.worker.decoder, "decode", None)  # is for devices that keep no tokens
    together = llm.generate(prompts, configs)
    for generation, expected in zip(together, waiting, strict=True):
        assert [a.token_ids for a in generation.answers] == [a.token_ids for a in expected.answers]
        for answer, other in zip(generation.answers, expected.answers, strict=True):
            reports = zip(answer.logprobs or [], other.logprobs or [], strict=True)
            assert all(abs(report.logprob - wanted.logprob) < 1e-5 for report, wanted in reports)
            assert (answer.logprobs is None) == (other.logprobs is None)
    requests = [(p, c) for p, c in zip(prompts, configs, strict=True) if c.num_beams > 1 and not c.do_sample]
    answers = [g for g, c in zip(together, configs, strict=True) if c.num_beams > 1 and not c.do_sample]
    assert not reference.contradicted(requests[:4], answers[:4])


def test_samples_are_drawn_with_their_own_noise(
    tiny_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of different lengths, so that slots change hands between requests of other seeds."""
    configs = [
        GenerationConfig(max_new_tokens=4 + 3 * (s % 4), do_sample=True, temperature=0.8, seed=s)
        for s in range(24)
    ]
    prompts = [[5 + s, 7, 9] * (1 + s % 5) for s in range(24)]
    generations = overlapped_llm(tiny_model, monkeypatch, num_blocks=60).generate(prompts, configs)
    answers = [generation.answers[0].token_ids for generation in generations]
    assert worst_miss(reference.model, prompts, configs, answers) < 1e-3
    assert worst_miss(reference.model, prompts, configs[1:] + configs[:1], answers) > 0.1, (
        "a check that checks"
    )


def test_tables_are_made_before_a_choice_is_captured(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a graph they would be made, and set to zero, at every replay."""
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=400, replayed=True)
    sampler, missing = choice_of(llm), []
    capture = sampler._captured.capture

    def look(key: Any, call: Any) -> None:
        stages = [llm.engine.worker.decoder.state.stages[index] for index in key[1:]]
        tables = [table for stage in stages for table in stage.kept_tables]
        if not all(stage.only_masks for stage in stages):
            tables.append(sampler.room)
        missing.extend(table for table in tables if table._tensor is None)
        capture(key, call)

    monkeypatch.setattr(sampler._captured, "capture", look)
    options: list[dict[str, Any]] = [{"repetition_penalty": 1.2}, {"do_sample": True, "top_k": 3}]
    for chosen in options:
        llm.generate([[5, 6, 7]], [GenerationConfig(max_new_tokens=3, **chosen)])
    assert len(sampler._captured) == 2 and not missing


def test_the_memory_set_aside_is_what_the_tables_take(device: torch.device) -> None:
    state = SamplingState(6, 500, device, TokenTable(6, 100, device))
    tables = [table for stage in state.stages for table in stage.kept_tables]
    tables.append(GpuSampler(state).room)
    assert len(tables) > 3
    taken = sum(table.tensor.numel() * table.tensor.element_size() for table in tables)
    assert table_bytes(6, 500) == taken
