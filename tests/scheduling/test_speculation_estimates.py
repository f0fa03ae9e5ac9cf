"""Continuations that are found, and the estimates of what drafting them costs and brings."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.scheduling.params import PromptLookup, SamplingParams
from server.scheduling.request import Phase, Request
from server.scheduling.speculation.ngrams import NgramIndex
from server.scheduling.speculation.payoff import Acceptance, DraftCost, StepCost, worthwhile
from server.scheduling.speculation.speculator import Speculator
from tests.continuous_batching.drafts import FreeDrafts


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(1, 8),
    st.integers(0, 60),
)
def test_continuations_are_found_as_by_looking_through_everything(
    tokens: list[int], max_size: int, count: int, cut: int
) -> None:
    index = NgramIndex(max_size)
    index.extend(tokens[:cut])
    index.extend(tokens[cut:])
    assert len(index) == len(tokens)
    for size in range(min(max_size, len(tokens) - 1), 0, -1):
        ends = [e for e in range(size, len(tokens)) if tokens[e - size : e] == tokens[-size:]]
        if ends:
            whole = list(tokens)
            for i in range(count):
                whole.append(whole[ends[-1] + i])
            place, found = index.find()
            assert (found, index.copy(place, count)) == (size, whole[len(tokens) :])
            return
    assert index.find() == (0, 0)


def test_rates_follow_what_is_accepted() -> None:
    server = Acceptance(3, memory=0.98)
    sequence = Acceptance(3, memory=0.8, prior=server)
    assert sequence.rates[2] == 0.5
    for _ in range(40):
        server.observe(2, drafted=4, accepted=0)
    assert server.rates[2] < 0.1 < server.rates[3] == 0.5
    for _ in range(3):
        sequence.observe(2, drafted=4, accepted=4)
    assert sequence.rates[2] > 0.7
    assert Acceptance(3, memory=0.8, prior=server).rates[2] < 0.1


def cost_of(points: dict[int, float]) -> StepCost:
    cost = StepCost()
    for tokens, seconds in points.items():
        for _ in range(3):
            cost.observe(tokens, seconds)
    return cost


def test_one_slow_step_is_not_believed() -> None:
    cost = cost_of({1: 7.0, 9: 8.0})
    cost.observe(9, 500.0)
    assert cost.seconds(9) == 8.0 and cost.seconds(5) == pytest.approx(7.5) and cost.seconds(40) == 8.0


def test_a_size_that_was_slow_is_tried_again() -> None:
    """Other work may have disturbed it so much that no drafts would ever be made again."""
    cost = cost_of({1: 7.0, 9: 500.0})
    assert cost.seconds(9) == 500.0
    for _ in range(2 * 1024):
        cost.observe(1, 7.0)
    assert cost.seconds(9) == 7.0


def test_a_draft_is_priced_as_a_whole() -> None:
    """The first of its tokens costs more than each further one; what was not tried seems cheap."""
    cost = DraftCost()
    assert cost.seconds(1, 4) == 0.0
    for rows, count, seconds in ((1, 1, 1.3), (1, 5, 2.5), (16, 5, 6.0)):
        for wrong in (1.0, 9.0, 1.0):
            cost.observe(rows, count, wrong * seconds)
    assert cost.seconds(1, 1) == 1.3 and cost.seconds(1, 3) == pytest.approx(1.9)
    assert cost.seconds(1, 8) == 2.5 and cost.seconds(16, 5) == cost.seconds(40, 5) == 6.0
    assert cost.seconds(16, 2) == pytest.approx(1.3 + (6.0 - 1.3) / 4)
    for _ in range(2 * 1024):
        cost.pass_step()
    assert cost.seconds(16, 5) == 0.0, "too high to be tried again otherwise"


def test_cheap_tokens_are_drafted_and_dear_ones_are_not() -> None:
    cheap, dear = cost_of({1: 1.0, 11: 1.1}), cost_of({1: 1.0, 11: 11.0})
    assert worthwhile([0.9], [10], 1, 99, cheap) == [10]
    assert worthwhile([0.08], [10], 1, 99, cheap) == [1]
    assert worthwhile([0.03], [10], 1, 99, cheap) == [0]
    assert worthwhile([0.9], [10], 1, 99, dear) == [0]
    # sixteen rows: a token is worth a sixteenth of a step, and costs a fortieth of one
    busy = cost_of({16: 1.0, 56: 2.0})
    assert worthwhile([0.9, 0.2], [10, 10], 16, 99, busy) == [8, 0]
    assert worthwhile([0.9, 0.9], [10, 10], 16, 5, busy) == [3, 2]


class Texts:
    """Sequences that decode, for a speculator without an engine; time is told, not measured."""

    def __init__(self, rows: int, seconds_per_token: float) -> None:
        self.speculator = Speculator()
        params = SamplingParams(max_new_tokens=10**6, prompt_lookup=PromptLookup(8, 3))
        self.requests = [Request(str(i), [1, 2, 3, 4, 5], params, 0.0) for i in range(rows)]
        for request in self.requests:
            self.speculator.watch(request)
        self._seconds_per_token = seconds_per_token
        self.seconds = self.base = 0.0
        self.tokens = 0

    def step(self, next_token: Any) -> None:
        sequences = [request.sequences[0] for request in self.requests]
        drafts = self.speculator.propose(sequences, 1000)
        made = {id(sequence): 1 for sequence in sequences}
        for draft in drafts:
            accepted, history = 0, draft.sequence.history
            while accepted < len(draft.tokens) and draft.tokens[accepted] == next_token(
                len(history) + accepted
            ):
                accepted += 1
            self.speculator.observe_draft(draft, accepted)
            made[id(draft.sequence)] += accepted
        drafted = sum(len(draft.tokens) for draft in drafts)
        seconds = 1.0 + self._seconds_per_token * drafted
        self.speculator.observe_step(len(sequences) + drafted, seconds)
        for sequence in sequences:
            for _ in range(made[id(sequence)]):
                sequence.history.append(next_token(len(sequence.history)))
        self.seconds += seconds
        self.base += 1.0
        self.tokens += sum(made.values())


@pytest.mark.parametrize("rows", [1, 8])
def test_drafts_that_do_not_pay_cost_next_to_nothing(rows: int) -> None:
    """Two letters in random order: there is always something to find, and never of use."""
    rng = random.Random(1)
    letters = [rng.randint(1, 50) for _ in range(20_000)]
    texts = Texts(rows, seconds_per_token=0.1)
    for _ in range(2_000):
        texts.step(lambda place: letters[place])
    assert texts.speculator.drafted_tokens > 0, "it never tries again"
    assert texts.seconds < 1.02 * texts.base
    assert texts.seconds / texts.tokens < 1.02 / rows


def test_a_text_that_becomes_repetitive_is_noticed() -> None:
    rng = random.Random(2)
    letters = [rng.randint(1, 50) for _ in range(1_000)]
    texts = Texts(1, seconds_per_token=0.1)
    for _ in range(600):
        texts.step(lambda place: letters[place])
    before = texts.tokens
    for _ in range(300):
        texts.step(lambda place: place % 7)
    assert texts.tokens - before > 3 * 300


def test_nothing_is_looked_up_for_those_who_do_not_ask() -> None:
    speculator = Speculator()
    request = Request("plain", [1, 2, 1, 2], SamplingParams(max_new_tokens=9), 0.0)
    speculator.watch(request)
    assert speculator.is_idle
    asking = SamplingParams(max_new_tokens=9, prompt_lookup=PromptLookup(4, 2))
    other = Request("asks", [1, 2, 1, 2], asking, 0.0)
    speculator.watch(other)
    assert not speculator.is_idle
    speculator.cost = FreeDrafts()
    drafts = speculator.propose([request.sequences[0], other.sequences[0]], 100)
    assert [(draft.line, draft.tokens) for draft in drafts] == [(1, [1, 2, 1, 2])]
    speculator.forget("asks")
    assert speculator.is_idle


def test_nobody_waits_for_tokens_that_no_draft_follows() -> None:
    """Every second token is the same and leads nowhere: to know the other one is of no use."""
    speculator = Speculator()
    params = SamplingParams(max_new_tokens=10**6, prompt_lookup=PromptLookup(8, 3))
    request = Request("one", [1, 2], params, 0.0)
    request.phase, (sequence,) = Phase.RUNNING, request.sequences
    sequence.num_computed = 2
    speculator.watch(request)
    waits = []
    for place in range(2_000):
        sequence.pending = 1
        waits.append(speculator.awaits([request]))
        if waits[-1]:  # the token under way becomes known
            sequence.history.append(1 if place % 2 else 1_000 + place)
            sequence.pending = 0
        drafts = speculator.propose([sequence], 100)
        assert all(draft.sequence is sequence and not sequence.pending for draft in drafts)
        for draft in drafts:
            speculator.observe_draft(draft, 0)
        if not waits[-1]:
            sequence.history.append(1 if place % 2 else 1_000 + place)
        sequence.pending = 0
        speculator.observe_step(1, 1.0)
    assert sum(waits[:200]) > 0 and sum(waits[1_000:]) < 60


def test_a_text_that_repeats_is_waited_for() -> None:
    speculator = Speculator()
    params = SamplingParams(max_new_tokens=10**6, prompt_lookup=PromptLookup(8, 3))
    request = Request("one", [*range(10)] * 3, params, 0.0)
    request.phase, (sequence,) = Phase.RUNNING, request.sequences
    sequence.num_computed, sequence.pending = 30, 1
    speculator.watch(request)
    for _ in range(3):
        assert not speculator.awaits([request]), "what a step takes is not known yet"
        speculator.observe_step(1, 1.0)
    assert speculator.awaits([request])
    assert not speculator.propose([sequence], 100), "its newest token is not known"
    sequence.history.append(0)
    sequence.pending = 0
    (draft,) = speculator.propose([sequence], 100)
    assert draft.tokens == [1, 2, 3, 4, 5, 6, 7, 8]
    request.held, sequence.pending = True, 1
    assert not speculator.awaits([request])
