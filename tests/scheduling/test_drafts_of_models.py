"""When a draft model or head is used, on simulated step times instead of an engine."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Container
from collections.abc import Sequence as Seq

import numpy as np
import pytest

from server.scheduling.params import SamplingParams
from server.scheduling.plan import Plan
from server.scheduling.request import Request, Sequence
from server.scheduling.speculation.by_model import ModelSpeculator, Proposal

DRAFTED = 6
"""Tokens of a draft at most."""
CATCH_UP = 15e-3
"""Seconds that a 1b model takes for a prompt where it is launched kernel by kernel."""
RIGHT, WRONG = 1, 2
"""The token that every text repeats, and one that no text contains."""
Draft = Callable[[int, int], float]
"""Milliseconds of a draft, by how many sequences it is for and how many tokens of each."""


def step_ms(lines: int, *, drafted: bool) -> float:
    """Milliseconds of a step of an 8b in bfloat16 on an H200; steps with drafts have fewer captured sizes."""
    sizes, times = (
        ([1, 4, 16, 32, 64, 128], [5.4, 5.5, 5.8, 6.5, 7.2, 7.8])
        if drafted
        else ([1, 16, 64], [3.85, 4.85, 6.3])
    )
    return float(np.interp(lines, sizes, times))


def by_head(rows: int, count: int) -> float:
    """Milliseconds of a draft by an EAGLE-3 head on the same GPU."""
    return 0.65 + 0.03 * rows + (0.25 + 0.005 * rows) * count


def by_model(rows: int, count: int) -> float:
    """Milliseconds of a draft by a 1b model on the same GPU."""
    return 0.55 + 0.05 * rows + (0.8 + 0.035 * rows) * count


class Drafter:
    """Guesses a token right with a given chance.

    Args:
        rate: that chance.
        cost: of a draft.
    """

    num_tokens = DRAFTED

    def __init__(self, rate: float, cost: Draft) -> None:
        self._rate = rate
        self._cost = cost
        self._dice = random.Random(0)

    def propose(self, sequences: Seq[Sequence], count: int) -> Proposal:
        tokens = [[self._guess() for _ in range(count)] for _ in sequences]
        return Proposal(tokens, self._cost(len(sequences), count) / 1e3, caught_up=False)

    def _guess(self) -> int:
        return RIGHT if self._dice.random() < self._rate else WRONG

    def follow(self, plan: Plan, watched: Container[str]) -> None:
        """It needs nothing of a step."""

    def forget(self, request_id: str) -> None:
        """It keeps nothing."""


class SlowToFollow(Drafter):
    """Computes what it does not know of a text before it guesses."""

    def __init__(self, rate: float, cost: Draft) -> None:
        super().__init__(rate, cost)
        self._known: dict[Sequence, int] = {}

    def propose(self, sequences: Seq[Sequence], count: int) -> Proposal:
        proposal = super().propose(sequences, count)
        proposal.caught_up = any(len(s.history) - self._known.get(s, 0) > 3 for s in sequences)
        if proposal.caught_up:
            proposal.seconds += CATCH_UP
        self._known |= {s: len(s.history) + count for s in sequences}
        return proposal


def ms_of_a_token(rows: int, drafter: Drafter, answer: int = 10**6, steps: int = 2_000) -> float:
    """Mean milliseconds per token of a row, simulated over `steps` steps.

    Args:
        answer: tokens of each answer, which the next one follows.
    """
    speculator = ModelSpeculator(drafter)
    params, disturbed, names = SamplingParams(max_new_tokens=answer), random.Random(1), itertools.count()

    def begin() -> Sequence:
        request = Request(str(next(names)), [RIGHT], params, 0.0)
        speculator.watch(request)
        return request.sequences[0]

    sequences = [begin() for _ in range(rows)]
    taken, made = 0.0, 0
    for _ in range(steps):
        drafts = speculator.propose(sequences, 128 - rows)
        tokens, drafting = dict.fromkeys(sequences, 1), speculator._drafting
        for draft in drafts:
            right = next((i for i, token in enumerate(draft.tokens) if token == WRONG), len(draft.tokens))
            speculator.observe_draft(draft, right)
            tokens[draft.sequence] += right
        lines = rows + sum(len(draft.tokens) for draft in drafts)
        noise = 3.0 if disturbed.random() < 0.03 else 1.0
        seconds = noise * step_ms(lines, drafted=lines > rows) / 1e3 + drafting
        speculator.observe_step(lines, seconds)
        taken, made = taken + seconds, made + sum(tokens.values())
        for line, (sequence, new) in enumerate(tokens.items()):
            for _ in range(new):
                sequence.history.append(RIGHT)
            if sequence.num_generated >= answer:
                speculator.forget(sequence.request.id)
                sequences[line] = begin()
    return 1e3 * taken * rows / made / (1 + 0.03 * 2.0)


def by_formula(rows: int, rate: float, cost: Draft) -> float:
    """The same by the formula of Leviathan et al. (2023), for the best number of drafted tokens."""
    plain = step_ms(rows, drafted=False)
    found = [
        (step_ms(rows * (count + 1), drafted=True) + cost(rows, count))
        / sum(rate**i for i in range(count + 1))
        for count in range(1, DRAFTED + 1)
    ]
    return min(plain, *found)


@pytest.mark.parametrize("drafter", [Drafter, SlowToFollow])
@pytest.mark.parametrize("cost", [by_head, by_model])
@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("rate", [0.9, 0.8, 0.6])
def test_the_speed_is_that_of_the_formula(
    rate: float, rows: int, cost: Draft, drafter: type[Drafter]
) -> None:
    assert ms_of_a_token(rows, drafter(rate, cost)) <= 1.10 * by_formula(rows, rate, cost)


@pytest.mark.parametrize("drafter", [Drafter, SlowToFollow])
@pytest.mark.parametrize("cost", [by_head, by_model])
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_a_model_that_is_never_right_costs_next_to_nothing(
    rows: int, cost: Draft, drafter: type[Drafter]
) -> None:
    assert ms_of_a_token(rows, drafter(0.0, cost)) <= 1.03 * step_ms(rows, drafted=False)


@pytest.mark.parametrize("answer", [50, 400])
@pytest.mark.parametrize("rate", [0.9, 0.8])
def test_a_good_model_drafts_for_every_answer(rate: float, answer: int) -> None:
    """Although it has to take each prompt first."""
    most = by_formula(1, rate, by_model) + 1e3 * CATCH_UP / answer
    assert ms_of_a_token(1, SlowToFollow(rate, by_model), answer) <= 1.10 * most


def test_what_is_owed_at_the_end_of_an_answer_does_not_hold_up_the_next() -> None:
    """A good model had to catch up shortly before the end, and none of what it guessed was taken."""
    speculator = ModelSpeculator(SlowToFollow(0.9, by_model))
    for _ in range(9):
        for lines in range(1, DRAFTED + 2):
            speculator.cost.observe(lines, step_ms(lines, drafted=lines > 1) / 1e3)
        for tokens in range(1, DRAFTED + 1):
            speculator.draft_cost.observe(1, tokens, by_model(1, tokens) / 1e3)
    speculator._rests, speculator._probe_seconds = True, -CATCH_UP
    request = Request("next", [RIGHT], SamplingParams(max_new_tokens=1000), 0.0)
    speculator.watch(request)
    steps = 0
    while not speculator.propose(request.sequences, 127):
        speculator.observe_step(1, step_ms(1, drafted=False) / 1e3)
        steps += 1
    assert 50 < steps < 200


def test_a_lone_request_is_drafted_for_after_many() -> None:
    """The price of drafts for many sequences is not taken for that of one."""
    speculator = ModelSpeculator(Drafter(0.9, by_head))
    for count in range(1, DRAFTED + 1):
        for _ in range(3):
            speculator.draft_cost.observe(64, count, 1.0)
    assert speculator.draft_cost.seconds(64, 3) == speculator.draft_cost.seconds(128, 3) == 1.0
    assert speculator.draft_cost.seconds(1, 3) == 0.0
