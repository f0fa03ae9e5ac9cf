"""A small model that guesses what a larger one says: its own cache, its own slots, one worker."""

from __future__ import annotations

import logging
import time
from collections.abc import Container
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from server.continuous_batching.draft_rows import DraftRows, Row
from server.sampling.chosen import ChosenTokens, PendingTokens
from server.scheduling.limits import Limits
from server.scheduling.plan import Chunk, Plan
from server.scheduling.request import Request, Sequence
from server.scheduling.speculation.by_model import Proposal
from server.scheduling.step import SampleInput
from server.scheduling.step_builder import StepBuilder
from server.worker.worker import Worker

logger = logging.getLogger(__name__)

_FEW = 3
"""Maximum number of uncomputed known tokens that join the first step of a draft as decodes. More are
prefilled before it."""


@dataclass(slots=True, eq=False)
class ModelRow(Row):
    """A sequence as the draft model knows it: its shadow has all of its tokens.

    Attributes:
        drafted: the newest guess, some of which may have come true.
    """

    drafted: list[int] = field(default_factory=list)


class DraftModel:
    """Drafts greedily for any sequences of the larger model; keeps what it computed as far as it is right.

    Args:
        worker: of the draft model.
        limits: its budgets; without room to swap.
        num_tokens: of a draft at most.
        vocab_size: of the larger model: no draft has tokens that it lacks.

    Attributes:
        label: for the operator.
    """

    label = "draft model"

    def __init__(self, worker: Worker, limits: Limits, num_tokens: int, vocab_size: int) -> None:
        self.num_tokens = num_tokens
        self.limits = limits
        self._worker = worker
        self._vocab_size = vocab_size
        self._builder = StepBuilder(longest_first=False)
        self._rows: DraftRows[ModelRow] = DraftRows(limits, ModelRow)
        self._broken = False

    def forget(self, request_id: str) -> None:
        """A request is gone."""
        self._rows.forget(request_id)

    def follow(self, plan: Plan, watched: Container[str]) -> None:
        """As `by_model.Drafter`: it needs nothing but tokens, and sees those in `propose`."""

    def propose(self, sequences: Seq[Sequence], count: int) -> Proposal:
        """As `by_model.Drafter`. Once it has failed, there are no drafts any more: answers do without."""
        begin = time.perf_counter()
        self._rows.begin_turn()
        nothing: list[list[int]] = [[] for _ in sequences]
        if self._broken:
            return Proposal(nothing, 0.0, caught_up=True)
        try:
            rows = [self._row_of(sequence, count) for sequence in sequences]
            live = [row for row in rows if row is not None]
            shadows = [row.shadow for row in live]
            joined = [shadow.request for shadow in shadows if not shadow.num_computed]
            self._tell([shadow for shadow in shadows if shadow.num_computed])
            caught_up = self._catch_up(shadows, joined)
            drafts = iter(self._draft(live, count, joined) if live else [])
        except Exception:
            logger.exception("the draft model failed: nothing is drafted any more")
            self._broken = True
            self._rows.clear()
            return Proposal(nothing, time.perf_counter() - begin, caught_up=True)
        tokens = [next(drafts) if row is not None else [] for row in rows]
        return Proposal(tokens, time.perf_counter() - begin, caught_up)

    def _row_of(self, sequence: Sequence, count: int) -> ModelRow | None:
        """What is kept for a sequence, with all its tokens and room for a draft; None: there is no room."""
        row = self._rows.get(sequence)
        if row is not None:
            _follow(row, sequence)
            self._rows.cache.shrink(row.shadow, row.shadow.num_computed)
        else:
            row = self._rows.open(sequence, sequence.history.as_array(0, len(sequence.history)))
            if row is None:
                return None
        shadow, known = row.shadow, len(sequence.history)
        wanted = known + count - 1 - shadow.num_computed
        fits = known + count <= self.limits.model_max_length
        newest = shadow.history.as_array(shadow.num_computed, known)
        if fits and int(newest.max()) < self._worker.vocab_size and self._rows.extend(row, wanted):
            return row
        self._rows.drop(sequence)
        return None

    # -- steps of the model ----------------------------------------------------------------------

    def _tell(self, shadows: Seq[Sequence]) -> None:
        """Send the worker the newest tokens of each: its token table may hold guesses instead."""
        for shadow in shadows:
            newest = shadow.history.slice(shadow.num_computed, len(shadow.history))
            places = range(shadow.num_computed, len(shadow.history))
            self._builder.moves.tokens += [
                (shadow.slot, *known) for known in zip(places, newest, strict=True)
            ]

    def _catch_up(self, shadows: Seq[Sequence], joined: list[Request]) -> bool:
        """Compute long runs of known tokens, but for the last one; returns whether there were any.

        Args:
            joined: requests that are new to the worker; cleared once it has been told of them.
        """
        far = [shadow for shadow in shadows if _uncomputed(shadow) > _FEW]
        if not far:
            return False
        while far:
            plan, budget = Plan(joined=[*joined]), self.limits.chunk_tokens
            joined.clear()
            for shadow in far:
                length = min(_uncomputed(shadow) - 1, budget)
                if length:
                    plan.chunks.append(Chunk(shadow, shadow.num_computed, length))
                budget -= length
            self._worker.launch(self._builder.build(plan))
            for chunk in plan.chunks:
                chunk.sequence.num_computed = chunk.end
            far = [shadow for shadow in far if _uncomputed(shadow) > 1]
        return True

    def _draft(self, rows: Seq[ModelRow], count: int, joined: list[Request]) -> list[list[int]]:
        """`count` tokens of each, fewer where there are none that both models have."""
        shadows = [row.shadow for row in rows]
        plan = Plan(joined=joined, decodes=[*shadows])
        for shadow in shadows:
            if (behind := _uncomputed(shadow) - 1) > 0:
                plan.chunks.append(Chunk(shadow, shadow.num_computed, behind, decoded=True))
                shadow.num_computed += behind
        choices: list[ChosenTokens | PendingTokens] = []
        for _ in range(count):
            self._worker.launch(self._builder.build(plan))
            choices.append(self._worker.sample(SampleInput()))
            plan = Plan(decodes=[*shadows])
            for shadow in shadows:
                shadow.num_computed += 1
        chosen = np.stack([choice.read().tokens[:, 0] for choice in choices], axis=1)
        for row, tokens in zip(rows, chosen, strict=True):
            none = np.flatnonzero((tokens < 0) | (tokens >= self._vocab_size))
            row.drafted = tokens[: none[0] if none.size else None].tolist()
        return [list(row.drafted) for row in rows]

    def check(self) -> None:
        """Verify that nothing leaked; raises if something did."""
        self._rows.check()


def _uncomputed(shadow: Sequence) -> int:
    return len(shadow.history) - shadow.num_computed


def _follow(row: ModelRow, sequence: Sequence) -> None:
    """Take the tokens that `sequence` got since; those that were drafted are computed already."""
    shadow, known = row.shadow, len(row.shadow.history)
    new = sequence.history.slice(known, len(sequence.history))
    right = 0
    for token, guess in zip(new, row.drafted, strict=False):
        if token != guess:
            break
        right += 1
    shadow.num_computed = min(shadow.num_computed, known + right)
    for token in new:
        shadow.history.append(token)
    row.drafted = []
