"""Sampling draws from the distribution that transformers' processors define."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers.generation import logits_process as hf

from server.sampling.beam_continuations import PendingCandidates, Searches
from server.sampling.choice import Choose, choose_by_torch, choose_function, choose_tokens
from server.sampling.lines import Lines
from server.sampling.pipeline import change_scores
from server.sampling.sampling_state import SamplingState
from server.scheduling.step import FAILED, SlotStart
from tests.sampling.params import params_of, state_of

VOCAB = 24
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


@pytest.fixture(params=["native", "torch"])
def choose(request: pytest.FixtureRequest) -> Choose:
    """The two ways to choose on a CPU."""
    found, about = choose_function(torch.device("cpu"))
    if request.param == "torch":
        return choose_by_torch
    if about["name"] != "native":
        pytest.skip(about["reason"])
    return found


def lines_of(count: int, first: int = 5) -> Lines:
    """One of each of `count` slots, at places that follow each other."""
    return Lines.of_step(np.arange(count), np.arange(first, first + count))


def test_ends_are_those_of_the_slots_present_owner() -> None:
    """A slot knows neither the ends of its former owners nor the padding of its list."""
    three, one, none = (params_of(ends) for ends in ((5, 6, 7), (9,), ()))
    state = state_of(three, three)
    for slot, params in enumerate((one, none)):
        state.assign(SlotStart(slot, params, 0, 1, np.array([1], np.int32)))
    scores = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    searches = Searches.of_slots(state, np.array([0, 1]))
    found = PendingCandidates(searches, scores, scores, torch.tensor([[9, 5], [6, 0]])).read()
    assert [candidates.stops.tolist() for candidates in found] == [[True, False], [False, False]]


def draw(state: SamplingState, scores: torch.Tensor, choose: Choose) -> np.ndarray:
    """Tokens drawn for slot 0 at `DRAWS` positions."""
    lines = Lines.of_step(np.zeros(DRAWS, np.int64), np.arange(DRAWS))
    return choose_tokens(scores.repeat(DRAWS, 1), state, lines, choose)


@pytest.mark.parametrize("name", FILTERS)
def test_distribution_is_that_of_transformers(name: str, choose: Choose) -> None:
    options, processors = FILTERS[name]
    scores = logits()
    expected = scores
    for processor in processors:
        expected = processor(torch.zeros(1, 1, dtype=torch.long), expected)
    probabilities = expected.softmax(-1)[0].double().numpy()
    tokens = draw(state_of(params_of(do_sample=True, **options)), scores, choose)
    counts = np.bincount(tokens, minlength=VOCAB)
    allowed = probabilities > 0
    assert not counts[~allowed].any(), "a token that the filter excludes was drawn"
    if allowed.sum() > 1:
        wanted = probabilities[allowed] / probabilities[allowed].sum() * DRAWS
        assert chisquare(counts[allowed], wanted).pvalue > 1e-4


def test_lines_with_different_options_do_not_mix(choose: Choose) -> None:
    """A batch of all kinds gives each line what it gets alone."""
    kinds = [{}, *(options for options, _ in FILTERS.values())]
    params = [params_of(do_sample=bool(options), seed=i, **options) for i, options in enumerate(kinds)]
    scores = torch.cat([logits(i) for i in range(len(params))])
    together = choose_tokens(scores.clone(), state_of(*params), lines_of(len(params)), choose)
    for i, options in enumerate(params):
        alone = choose_tokens(scores[[i]], state_of(options), lines_of(1, first=5 + i), choose)
        assert alone[0] == together[i]


def test_penalties_and_bias_against_transformers() -> None:
    scores = logits()
    params = params_of(
        (0, 6),
        repetition_penalty=1.7,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={4: 3.0, 5: -2.0},
        min_new_tokens=5,
    )
    ours = scores.clone()
    change_scores(ours, state_of(params), lines_of(1))
    history = torch.tensor([[1, 2, 3, 2, 2, 5]])
    bias = hf.SequenceBiasLogitsProcessor([[[4], 3.0], [[5], -2.0]])
    expected = hf.RepetitionPenaltyLogitsProcessor(1.7)(history, bias(history, scores))
    expected[0, 2] -= 0.5 + 2 * 0.25  # OpenAI: only what was generated counts
    expected[0, 5] -= 0.5 + 0.25
    expected[0, [0, 6]] = float("-inf")
    torch.testing.assert_close(ours, expected)


def test_end_of_sequence_is_allowed_from_min_new_tokens_on() -> None:
    state = state_of(params_of((0,), min_new_tokens=3))
    for newest, allowed in ((4, False), (5, True)):  # the prompt has three tokens
        scores = logits()
        change_scores(scores, state, lines_of(1, first=newest))
        assert bool(torch.isfinite(scores[0, 0])) is allowed


def test_scores_that_are_not_finite_choose_nothing(choose: Choose) -> None:
    greedy, sampled = params_of(), params_of(do_sample=True)
    scores = torch.cat([logits()] * 7)
    scores[0, 3] = scores[1, 3] = float("nan")
    scores[2, 4] = scores[3, 4] = float("inf")
    scores[4] = scores[5] = float("-inf")
    state = state_of(greedy, sampled, greedy, sampled, greedy, sampled, sampled)
    tokens = choose_tokens(scores, state, lines_of(7), choose)
    assert (tokens[:6] == FAILED).all() and tokens[6] != FAILED


def test_scores_that_overflow_choose_nothing(choose: Choose) -> None:
    """Of a division that leaves float32 the greatest is infinite, whatever is drawn beside it."""
    scores = 1e38 * logits()
    assert choose_tokens(
        scores, state_of(params_of(do_sample=True, temperature=1e-5)), lines_of(1), choose
    ) == [FAILED]


def test_a_token_that_is_excluded_is_never_drawn(choose: Choose) -> None:
    """Not even where it is one of all but one."""
    scores = torch.full((1, VOCAB), float("-inf"))
    scores[0, 17] = -80.0
    assert (draw(state_of(params_of(do_sample=True)), scores, choose) == 17).all()
