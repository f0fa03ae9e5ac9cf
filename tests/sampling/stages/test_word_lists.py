"""`bad_words_ids` and `allowed_token_ids`: what is excluded, and answers of the engine, are those of
transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import NoBadWordsLogitsProcessor, PrefixConstrainedLogitsProcessor

from protocol.generation import GenerationConfig
from server.sampling.lines import GpuLines, Lines
from server.sampling.pipeline import change_scores
from server.sampling.sampling_state import SamplingState
from server.sampling.slot_values import SlotTable
from server.sampling.stages.allowed_tokens import AllowedTokens
from server.sampling.stages.bad_words import BadWords
from server.sampling.token_table import TokenTable
from server.scheduling.step import SlotStart, StepInput
from tests.continuous_batching.drafts import drafting_llm, with_lookup
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.overlapped import choice_of, overlapped_llm
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.sampling.params import params_of

VOCAB, END = 9, 8
WORDS: list[list[list[int]]] = [
    [[1]], [[1, 2], [3]], [], [[2, 1, 2], [1, 2], [0]], [[END], [5]], [[1, 1, 1, 1, 1, 1, 1, 1, 2], [7]],
]  # fmt: skip
ALLOWED: list[list[int] | None] = [None, [3, 4], [0], None, [END, 2, 2, 5], [*range(VOCAB)]]
KNOWN = [[1], [5, 1], [3, 3, 1, 1], [1, 2, 1], [2, 1, 2, 1, 2, 1], [1] * 8]


def state_of(device: torch.device) -> SamplingState:
    state = SamplingState(len(KNOWN), VOCAB, device, TokenTable(len(KNOWN), 50, device))
    starts = [
        SlotStart(slot, params_of((END,), bad_words_ids=words, allowed_token_ids=allowed), 0, 1, tokens)
        for slot, (words, allowed, tokens) in enumerate(
            zip(WORDS, ALLOWED, (np.array(tokens, np.int32) for tokens in KNOWN), strict=True)
        )
    ]
    state.prepare(StepInput(starts=starts))
    return state


def expected(scores: torch.Tensor, slots: list[int]) -> torch.Tensor:
    """Each line by transformers."""
    rows = []
    for line, slot in enumerate(slots):
        tokens, row, allowed = torch.tensor([KNOWN[slot]]), scores[[line]], ALLOWED[slot]
        if WORDS[slot]:
            row = NoBadWordsLogitsProcessor(WORDS[slot], END)(tokens, row)
        if allowed is not None:
            row = PrefixConstrainedLogitsProcessor(lambda *_, found=allowed: found, 1)(tokens, row)
        rows.append(row)
    return torch.cat(rows)


def test_what_is_excluded() -> None:
    slots = [3, 0, 5, 2, 1, 4]
    state, scores = state_of(torch.device("cpu")), torch.randn(len(slots), VOCAB)
    wanted = expected(scores, slots)
    positions = np.array([len(KNOWN[slot]) - 1 for slot in slots])
    change_scores(scores, state, Lines.of_step(np.array(slots), positions))
    assert torch.equal(scores, wanted) and wanted.isneginf().sum() > 20


def test_the_kernels_exclude_the_same(device: torch.device) -> None:
    """Padding, whose slot holds no sequence, stays as it is."""
    state, slots = state_of(device), [3, 0, 5, 2, 1, 4]
    state.flush()
    scores = torch.randn(len(slots) + 1, VOCAB, device=device)
    wanted, padding = expected(scores[:-1].cpu(), slots), scores[-1].clone()
    lines = GpuLines(
        torch.tensor([*slots, len(KNOWN)], dtype=torch.int32, device=device),
        torch.tensor([*(len(KNOWN[slot]) - 1 for slot in slots), -1], dtype=torch.int32, device=device),
        SlotTable(len(scores), VOCAB, torch.float32, device),
    )
    for stage in state.stages:
        if isinstance(stage, BadWords | AllowedTokens):
            assert stage.launch(scores, lines) is scores
    assert torch.equal(scores[:-1].cpu(), wanted) and torch.equal(scores[-1], padding)


# -- the engine ------------------------------------------------------------------------------------


def limited(reference: Reference, count: int, seed: int, **lengths: int) -> list[Any]:
    """Random requests of every kind that forbid what they would say, or allow a part of the vocabulary."""
    dice = random.Random(seed)
    requests = []
    for prompt, config in mixed_requests(reference, count, seed, **lengths):
        changes: dict[str, Any] = {}
        if dice.random() < 0.7:
            (said, *_) = reference.answers(prompt, config)
            starts = dice.choices(range(len(said)), k=4)
            changes["bad_words_ids"] = [said[start : start + dice.randint(1, 3)] for start in starts]
        if dice.random() < 0.4:
            changes["allowed_token_ids"] = dice.sample(range(3, reference.vocab_size), k=100)
        requests.append((prompt, config.model_copy(update=changes)))
    return requests


@pytest.mark.parametrize("policy", ["swap", "recompute"])
def test_answers_under_pressure(tiny_model: Path, reference: Reference, policy: str) -> None:
    """Beams, drafts and stops, swapped out or recomputed all the time."""
    requests = limited(reference, 16, seed=5, longest=30, longest_prompt=40)
    requests = with_lookup(requests, seed=6)
    llm = drafting_llm(tiny_model, num_blocks=48, num_blocks_cpu=48, watermark=0.0, swap_policy=policy)
    generations = llm.generate([prompt for prompt, _ in requests], [config for _, config in requests])
    assert not reference.contradicted(requests, generations)
    stats = llm.engine.stats()
    assert stats.preempted_by_swap + stats.preempted_by_recompute > 0 and stats.drafted_tokens > 0


@pytest.mark.parametrize("replayed", [False, True])
def test_answers_of_steps_that_do_not_wait(
    tiny_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch, replayed: bool
) -> None:
    options: list[dict[str, Any]] = [
        {"bad_words_ids": [[5], [7, 9], [300]]}, {"allowed_token_ids": [*range(3, 512, 9)]}, {},
        {"bad_words_ids": [[7, 9, 8]], "allowed_token_ids": [*range(3, 60)], "num_beams": 3},
    ]  # fmt: skip
    configs = [GenerationConfig(max_new_tokens=6, **chosen) for chosen in options]
    requests = [([5 + i, 7, 9] * (1 + i), config) for i, config in enumerate(configs)]
    said = reference.answers(*requests[0])[0]
    words = [*configs[0].bad_words_ids, said[2:4]]
    requests[0] = (requests[0][0], configs[0].model_copy(update={"bad_words_ids": words}))
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=400, replayed=replayed)
    for part in (requests[:3], requests):
        generations = llm.generate([prompt for prompt, _ in part], [config for _, config in part])
        assert not reference.contradicted(part, generations)
    assert bool(choice_of(llm)._captured) == replayed
    assert llm.engine.stats().step_failures == 0


def test_words_are_tokens_with_a_space_and_without(tiny_model: Path, reference: Reference) -> None:
    llm, prompt = small_llm(tiny_model), [0, 100, 200, 300]
    (free,) = llm.generate([prompt], GenerationConfig(max_new_tokens=40))
    said = [reference.tokenizer.decode([token]) for token in free.answers[0].token_ids]
    words = [text for text in said if text.strip().isalpha() and text.isascii()][:3]
    (held,) = llm.generate([prompt], GenerationConfig(max_new_tokens=40, bad_words=words))
    forbidden = [
        reference.tokenizer.encode(space + word.lstrip(), add_special_tokens=False)
        for word in words
        for space in ("", " ")
    ]
    (expected,) = reference.answers(prompt, GenerationConfig(max_new_tokens=40, bad_words_ids=forbidden))
    assert len(words) > 1 and held.answers[0].token_ids == expected != free.answers[0].token_ids


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_p": 0.5}, {"num_beams": 2}])
def test_who_leaves_no_token_fails_alone(
    tiny_model: Path, reference: Reference, options: dict[str, Any]
) -> None:
    """As soon as the one token that is allowed would complete what is forbidden."""
    driver, prompt = Driver(small_llm(tiny_model)), [5, 6, 7]
    driver.add("plain", prompt, {"max_new_tokens": 8})
    lists = {"allowed_token_ids": [300], "bad_words_ids": [[300, 300]]}
    driver.add("stuck", prompt, {"max_new_tokens": 8, **lists, **options})
    driver.finish()
    assert (
        driver.failures["stuck"].status == 422 and "exclude every token" in driver.failures["stuck"].message
    )
    assert driver.answers("plain") == reference.answers(prompt, GenerationConfig(max_new_tokens=8))
