"""Sampling draws from the distribution that transformers' processors define."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from transformers.generation import logits_process as hf

from server.continuous_batching.decoding.params import SamplingParams
from server.continuous_batching.decoding.processors import apply_processors
from server.continuous_batching.decoding.rows import RowTable
from server.continuous_batching.decoding.sampler import FAILED, choose_tokens
from server.random import uniform

VOCAB = 24
PINNED = [0.9803994916520594, 0.7095686014856734, 0.7544147035541825]
DRAWS = 20_000

FILTERS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "temperature": ({"temperature": 0.7}, [hf.TemperatureLogitsWarper(0.7)]),
    "hot": ({"temperature": 1.8}, [hf.TemperatureLogitsWarper(1.8)]),
    "top_k": ({"top_k": 5}, [hf.TopKLogitsWarper(5)]),
    "top_k of everything": ({"top_k": 100}, [hf.TopKLogitsWarper(100)]),
    "top_p": ({"top_p": 0.8}, [hf.TopPLogitsWarper(0.8)]),
    "top_p of one": ({"top_p": 0.01}, [hf.TopPLogitsWarper(0.01)]),
    "min_p": ({"min_p": 0.1}, [hf.MinPLogitsWarper(0.1)]),
    "typical_p": ({"typical_p": 0.6}, [hf.TypicalLogitsWarper(0.6)]),
    "all": (
        {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9},
        [
            hf.TemperatureLogitsWarper(1.3),
            hf.TopKLogitsWarper(12),
            hf.TopPLogitsWarper(0.9),
            hf.MinPLogitsWarper(0.02),
            hf.TypicalLogitsWarper(0.9),
        ],
    ),
}


def logits(seed: int = 0) -> torch.Tensor:
    return 2.5 * torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed))


def table_of(*params: SamplingParams) -> RowTable:
    table = RowTable(len(params), VOCAB, torch.device("cpu"))
    for row, options in enumerate(params):
        table.assign(row, options, answer=0, prompt=[1, 2, 3], generated=[2, 2, 5])
    return table


def test_ends_are_those_of_the_rows_present_owner() -> None:
    """A row knows neither the ends of its former owners nor the padding of its list."""
    three, one, none = (SamplingParams(8, eos_token_ids=ends) for ends in ((5, 6, 7), (9,), ()))
    table = table_of(three, three)
    table.assign(0, one, answer=0, prompt=[1], generated=[])
    table.assign(1, none, answer=0, prompt=[1], generated=[])
    tokens = np.array([[9, 0, 5, 6, 7], [9, 0, 5, 6, 7]])
    assert table.is_eos(np.array([0, 1]), tokens).tolist() == [[True] + [False] * 4, [False] * 5]


def draw(table: RowTable, scores: torch.Tensor, draws: int = DRAWS) -> np.ndarray:
    """Tokens drawn for row 0 at `draws` positions."""
    rows = np.zeros(draws, np.int64)
    return choose_tokens(scores.repeat(draws, 1), table, rows, np.arange(draws))


@pytest.mark.parametrize("name", FILTERS)
def test_distribution_is_that_of_transformers(name: str) -> None:
    options, processors = FILTERS[name]
    scores = logits()
    expected = scores
    for processor in processors:
        expected = processor(torch.zeros(1, 1, dtype=torch.long), expected)
    probabilities = expected.softmax(-1)[0].double().numpy()
    tokens = draw(table_of(SamplingParams(max_new_tokens=9, do_sample=True, **options)), scores)
    counts = np.bincount(tokens, minlength=VOCAB)
    allowed = probabilities > 0
    assert not counts[~allowed].any(), "a token that the filter excludes was drawn"
    if allowed.sum() > 1:
        wanted = probabilities[allowed] / probabilities[allowed].sum() * DRAWS
        assert chisquare(counts[allowed], wanted).pvalue > 1e-4


def test_rows_with_different_options_do_not_mix() -> None:
    """A batch of all kinds gives each row what it gets alone."""
    kinds = [{}, *(options for options, _ in FILTERS.values())]
    params = [SamplingParams(max_new_tokens=9, do_sample=bool(o), seed=i, **o) for i, o in enumerate(kinds)]
    scores = torch.cat([logits(i) for i in range(len(params))])
    rows, positions = np.arange(len(params)), np.arange(10, 10 + len(params))
    together = choose_tokens(scores.clone(), table_of(*params), rows, positions)
    for i, options in enumerate(params):
        alone = choose_tokens(
            scores[i : i + 1], table_of(options), np.zeros(1, np.int64), positions[i : i + 1]
        )
        assert alone[0] == together[i]


def test_penalties_and_bias_against_transformers() -> None:
    scores = logits()
    params = SamplingParams(
        max_new_tokens=9,
        repetition_penalty=1.7,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={4: 3.0, 5: -2.0},
        min_new_tokens=5,
        eos_token_ids=(0, 6),
    )
    ours = scores.clone()
    apply_processors(ours, table_of(params), np.zeros(1, np.int64), np.array([3]))
    history = torch.tensor([[1, 2, 3, 2, 2, 5]])
    bias = hf.SequenceBiasLogitsProcessor([[[4], 3.0], [[5], -2.0]])
    expected = hf.RepetitionPenaltyLogitsProcessor(1.7)(history, bias(history, scores))
    expected[0, 2] -= 0.5 + 2 * 0.25  # OpenAI: only what was generated counts
    expected[0, 5] -= 0.5 + 0.25
    expected[0, [0, 6]] = float("-inf")
    torch.testing.assert_close(ours, expected)


def test_end_of_sequence_is_allowed_from_min_new_tokens_on() -> None:
    table = table_of(SamplingParams(max_new_tokens=9, min_new_tokens=3, eos_token_ids=(0,)))
    for generated, allowed in ((2, False), (3, True)):
        scores = logits()
        apply_processors(scores, table, np.zeros(1, np.int64), np.array([generated]))
        assert bool(torch.isfinite(scores[0, 0])) is allowed


def test_scores_that_are_not_finite_choose_nothing() -> None:
    greedy, sampled = SamplingParams(max_new_tokens=9), SamplingParams(max_new_tokens=9, do_sample=True)
    scores = torch.cat([logits(), logits(), logits()])
    scores[0, 3] = scores[1, 3] = float("nan")
    table = table_of(greedy, sampled, sampled)
    tokens = choose_tokens(scores, table, np.arange(3), np.zeros(3, np.int64))
    assert tokens[0] == tokens[1] == FAILED != tokens[2]


@pytest.mark.parametrize("temperature", [1e-45, 1e-300])
def test_scores_that_overflow_choose_nothing(temperature: float) -> None:
    """A division that leaves float32 makes NaN of the whole row: an index of it is no token."""
    params = SamplingParams(max_new_tokens=9, do_sample=True, temperature=temperature)
    tokens = choose_tokens(100 * logits(), table_of(params), np.zeros(1, np.int64), np.zeros(1, np.int64))
    assert tokens.tolist() == [FAILED]


def test_uniform_numbers_are_uniform_and_independent() -> None:
    seeds = torch.arange(100).unsqueeze(1)
    numbers = uniform(seeds, torch.tensor(0), torch.arange(200).unsqueeze(0)).numpy()
    assert numbers.min() > 0.0 and numbers.max() < 1.0
    assert kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.03
    assert len(np.unique(numbers)) == numbers.size


def test_uniform_numbers_never_change() -> None:
    """Pinned: a stream may be continued by a server of another version."""
    numbers = uniform(torch.tensor([1024, 1024, 7]), torch.tensor([0, 1, 0]), torch.tensor([5, 5, 5]))
    assert numbers.tolist() == pytest.approx(PINNED, abs=1e-15)
