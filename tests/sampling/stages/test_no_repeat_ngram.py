"""`no_repeat_ngram_size`: what is excluded, and answers of the engine, are those of transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor

from protocol.generation import GenerationConfig
from server.sampling.lines import GpuLines, Lines
from server.sampling.pipeline import change_scores
from server.sampling.sampling_state import SamplingState
from server.sampling.slot_values import SlotTable
from server.sampling.stages.no_repeat_ngram import NoRepeatNgram
from server.sampling.token_table import TokenTable
from server.sampling.verification import DraftLines
from server.scheduling.step import SlotStart, StepInput
from tests.continuous_batching.drafts import drafting_llm, with_lookup
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.overlapped import choice_of, overlapped_llm
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.sampling.params import params_of

VOCAB = 9
SIZES = [1, 2, 3, 5, 0, 2, 40, 1]


def sequences(longest: int) -> list[list[int]]:
    """One for each of `SIZES`, over so few tokens that n-grams repeat."""
    dice = random.Random(longest)
    return [dice.choices(range(VOCAB), k=dice.randint(1, longest)) for _ in SIZES]


def state_of(known: list[list[int]], device: torch.device, length: int) -> SamplingState:
    state = SamplingState(len(known), VOCAB, device, TokenTable(len(known), length, device))
    starts = [
        SlotStart(slot, params_of(no_repeat_ngram_size=size), 0, 1, np.array(tokens, np.int32))
        for slot, (size, tokens) in enumerate(zip(SIZES, known, strict=True))
    ]
    state.prepare(StepInput(starts=starts))
    return state


def expected(scores: torch.Tensor, slots: np.ndarray, known: list[list[int]]) -> torch.Tensor:
    """Each line by transformers; `known` has the tokens that each follows."""
    rows = []
    for line, (slot, tokens) in enumerate(zip(slots.tolist(), known, strict=True)):
        size, row = SIZES[slot], scores[[line]]
        rows.append(NoRepeatNGramLogitsProcessor(size)(torch.tensor([tokens]), row) if size else row)
    return torch.cat(rows)


@pytest.mark.parametrize("longest", [3, 12, 60])
def test_what_is_excluded(longest: int) -> None:
    known = sequences(longest)
    state = state_of(known, torch.device("cpu"), 100)
    slots = np.array([3, 0, 7, 2, 1, 4, 6, 5])
    scores = torch.randn(len(slots), VOCAB)
    wanted = expected(scores, slots, [known[slot] for slot in slots])
    change_scores(scores, state, Lines.of_step(slots, np.array([len(known[slot]) - 1 for slot in slots])))
    assert torch.equal(scores, wanted)


def test_lines_that_follow_drafted_tokens() -> None:
    """Each sees the tokens drafted before it, and none behind."""
    known = sequences(20)
    state = state_of(known, torch.device("cpu"), 100)
    slots, drafted = np.array([2, 1, 0]), np.array([4, 4, 4, 7, 1], np.int32)
    positions = np.array([len(known[slot]) - 1 for slot in slots])
    step = StepInput(
        decode_slots=slots.astype(np.int32),
        decode_positions=positions.astype(np.int32),
        draft_lines=np.array([0, 1], np.int32),
        draft_lengths=np.array([3, 2], np.int32),
        draft_tokens=drafted,
    )
    state.prepare(step)
    drafts = DraftLines(step.draft_lines, step.draft_lengths, step.draft_tokens, 3)
    lines = Lines.of_step(*step.sampled(), drafts)
    behind = [known[slot] for slot in slots]
    behind += [known[2] + drafted[: 1 + i].tolist() for i in range(3)]
    behind += [known[1] + drafted[3 : 4 + i].tolist() for i in range(2)]
    scores = torch.randn(8, VOCAB)
    wanted = expected(scores, lines.slots, behind)
    change_scores(scores, state, lines)
    assert torch.equal(scores, wanted)


@pytest.mark.parametrize("longest", [3, 60, 9000])
def test_the_kernel_excludes_the_same(device: torch.device, longest: int) -> None:
    """Sequences longer than one program looks at; padding, whose slot holds no sequence."""
    known = sequences(longest)
    if longest > 1000:
        known = [(tokens * (1 + longest // len(tokens)))[:longest] for tokens in known]
    state = state_of(known, device, 10_000)
    state.flush()
    slots = np.array([3, 0, 7, 2, 1, 4, 6, 5])
    positions = np.array([len(known[slot]) - 1 for slot in slots])
    scores = torch.randn(9, VOCAB, device=device)
    wanted = expected(scores[:8].cpu(), slots, [known[slot] for slot in slots])
    (stage,) = (stage for stage in state.stages if isinstance(stage, NoRepeatNgram))
    lines = GpuLines(
        torch.tensor([*slots, len(SIZES)], dtype=torch.int32, device=device),
        torch.tensor([*positions, -1], dtype=torch.int32, device=device),
        SlotTable(9, VOCAB, torch.float32, device),
    )
    padding = scores[8].clone()
    assert stage.launch(scores, lines) is scores
    assert torch.equal(scores[:8].cpu(), wanted) and torch.equal(scores[8], padding)


# -- the engine ------------------------------------------------------------------------------------


def unrepeated(reference: Reference, count: int, seed: int, **lengths: int) -> list[Any]:
    """Random requests of every kind, of which most ask for it; many prompts repeat a passage."""
    dice = random.Random(seed)
    requests = []
    for prompt, config in mixed_requests(reference, count, seed, **lengths):
        if dice.random() < 0.5:
            prompt = prompt[: dice.randint(1, 6)] * dice.randint(2, 5)
        size = dice.choice([0, 1, 2, 2, 3])
        requests.append((prompt, config.model_copy(update={"no_repeat_ngram_size": size})))
    return requests


@pytest.mark.parametrize("policy", ["swap", "recompute"])
@pytest.mark.parametrize("drafted", [False, True])
def test_answers_under_pressure(tiny_model: Path, reference: Reference, policy: str, drafted: bool) -> None:
    """Beams, drafts and stops, swapped out or recomputed all the time."""
    requests = unrepeated(reference, 18, seed=5, longest=40, longest_prompt=40)
    if drafted:
        requests = with_lookup(requests, seed=6)
    make = drafting_llm if drafted else small_llm
    llm = make(tiny_model, num_blocks=48, num_blocks_cpu=48, watermark=0.0, swap_policy=policy)
    generations = llm.generate([prompt for prompt, _ in requests], [config for _, config in requests])
    assert not reference.contradicted(requests, generations)
    stats = llm.engine.stats()
    assert stats.preempted_by_swap + stats.preempted_by_recompute > 0
    assert not drafted or stats.drafted_tokens > 50


@pytest.mark.parametrize("replayed", [False, True])
def test_answers_of_steps_that_do_not_wait(
    tiny_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, replayed: bool
) -> None:
    """The tokens are those in the table on the device, which the host does not know yet; within graphs."""
    options: list[dict[str, Any]] = [
        {"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 1, "repetition_penalty": 1.1}, {},
        {"no_repeat_ngram_size": 2, "num_beams": 3},
    ]  # fmt: skip
    configs = [GenerationConfig(max_new_tokens=16, **chosen) for chosen in options]
    requests = [([5 + i, 7, 9] * (1 + i), config) for i, config in enumerate(configs)]
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=400, replayed=replayed)
    for part in (requests[:3], requests):
        generations = llm.generate([prompt for prompt, _ in part], [config for _, config in part])
        assert not reference.contradicted(part, generations)
    assert bool(choice_of(llm)._captured) == replayed
    assert llm.engine.stats().step_failures == 0
