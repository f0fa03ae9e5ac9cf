"""A draft head that guesses what its target says: it reads the target's states, step by step."""

from __future__ import annotations

import logging
import time
from collections.abc import Container
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from server.continuous_batching.draft_rows import DraftRows, Row
from server.scheduling.limits import DRAFTED_LINES, Limits
from server.scheduling.plan import Chunk, Plan
from server.scheduling.request import Sequence
from server.scheduling.speculation.by_model import Proposal
from server.scheduling.step_builder import StepBuilder
from server.worker.head_runner import KEPT, HeadRunner
from server.worker.worker import Worker

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class HeadRow(Row):
    """A sequence as the head knows it, from the place on where it saw the target's states.

    Place p needs the states of token p and token p + 1. The shadow counts places from `start` on, and its
    positions with them: a rotary embedding knows distances alone.

    Attributes:
        start: the first place.
        kept_begin, kept_end: places whose states the runner keeps, not all of which need be right.
    """

    start: int = 0
    kept_begin: int = 0
    kept_end: int = -1

    @property
    def end(self) -> int:
        """The place behind those that are computed."""
        return self.start + self.shadow.num_computed


@dataclass(slots=True)
class _Batch:
    """What a step of the head is made of.

    Attributes:
        plan: its chunks.
        tokens: of each chunk, those behind its places.
        rows: of each chunk, where the target's step has the states of its places.
        kept: (slot, place, row) of states to keep.
    """

    plan: Plan = field(default_factory=Plan)
    tokens: list[np.ndarray] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    kept: list[tuple[int, int, int]] = field(default_factory=list)


class HeadDrafter:
    """Drafts greedily for sequences whose states it saw; forgets what it computed from its own guesses.

    Places of prompts are computed beside the step that gives their states. The states of decodes are kept
    until drafts are wanted. Where some were not seen (a prefix that was cached, a fork, more decodes than are
    kept while drafts rested), the head begins anew at the first place from which on it has all.

    Args:
        runner: computes the head.
        limits: of its cache; without room to swap.
        num_tokens: of a draft at most.
        computed_by: what computes it and why, for the operator.
    """

    def __init__(
        self, runner: HeadRunner, limits: Limits, num_tokens: int, computed_by: dict[str, dict[str, str]]
    ) -> None:
        self.num_tokens = num_tokens
        self.runner = runner
        self._computed_by = computed_by
        self._rows: DraftRows[HeadRow] = DraftRows(limits, HeadRow)
        self._builder = StepBuilder(longest_first=False)
        self._target: Worker | None = None
        self._broken = False

    @property
    def label(self) -> str:
        """For the operator."""
        return self.runner.head.label

    def describe(self) -> dict[str, Any]:
        """What computes it, and in front of which layers it reads, for the operator."""
        return {"read_layers": [*self.runner.head.head_spec.read_layers], **self._computed_by}

    def read_from(self, target: Worker) -> None:
        """From now on, read the states of that worker's steps."""
        self._target = target

    def forget(self, request_id: str) -> None:
        """A request is gone."""
        self._rows.forget(request_id)

    def check(self) -> None:
        """Verify that nothing leaked; raises if something did."""
        self._rows.check()

    def _fail(self) -> None:
        """Called where an error is handled: there are no drafts any more, and answers do without."""
        logger.exception("the draft head failed: nothing is drafted any more")
        self._broken = True
        self._rows.clear()

    # -- steps of the target ---------------------------------------------------------------------

    def follow(self, plan: Plan, watched: Container[str]) -> None:
        """As `by_model.Drafter`: take the states of the step that was just launched."""
        states = None if self._target is None or self._broken else self._target.layer_inputs
        if states is None:
            return
        try:
            self._rows.begin_turn()
            batch = _Batch()
            lines = len(plan.decodes) + sum(len(draft.tokens) for draft in plan.drafts)
            if len(plan.decodes) < DRAFTED_LINES:  # with more, nothing is drafted
                self._follow_decodes(plan, watched, batch)
            for chunk in sorted(plan.chunks, key=lambda chunk: not chunk.decoded):  # as a step has them
                if chunk.sequence.request.id in watched:
                    self._follow_chunk(chunk, lines, batch)
                lines += chunk.length
            if batch.plan.chunks:
                step = self._builder.build(batch.plan)
                self.runner.follow(step, np.concatenate(batch.tokens), np.concatenate(batch.rows), states)
                for own in batch.plan.chunks:
                    own.sequence.num_computed = own.end
            if batch.kept:
                slots, places, lines_kept = np.array(batch.kept).T
                self.runner.keep(slots, places, lines_kept, states)
        except Exception:
            self._fail()

    def _follow_decodes(self, plan: Plan, watched: Container[str], batch: _Batch) -> None:
        lengths, first = dict[int, int](), dict[int, int]()
        begin = len(plan.decodes)
        for draft in plan.drafts:
            lengths[draft.line], first[draft.line] = len(draft.tokens), begin
            begin += len(draft.tokens)
        for line, sequence in enumerate(plan.decodes):
            if sequence.request.id not in watched:
                continue
            row = self._rows.get(sequence) or self._rows.open(sequence, replace=False)
            if row is not None:
                behind = range(first.get(line, 0), first.get(line, 0) + lengths.get(line, 0))
                _keep(row, sequence.num_computed, [line, *behind], batch)

    def _follow_chunk(self, chunk: Chunk, line: int, batch: _Batch) -> None:
        """Compute the places of a chunk whose next tokens are known; `line` is that of its first token."""
        sequence, history = chunk.sequence, chunk.sequence.history
        row = self._rows.get(sequence) or self._rows.open(sequence)
        if row is None:
            return
        if row.end < chunk.start:
            self._restart(row, chunk.start)
        end = max(min(chunk.end, len(history) - 1), chunk.start)
        if (count := end - row.end) > 0:
            if not self._rows.extend(row, count):
                self._rows.drop(sequence)
                return
            begin = line + row.end - chunk.start
            batch.tokens.append(self._tokens(sequence, row.end, end))
            batch.rows.append(np.arange(begin, begin + count))
            batch.plan.chunks.append(Chunk(row.shadow, row.shadow.num_computed, count))
        rest = range(line + max(end, chunk.end - KEPT) - chunk.start, line + chunk.length)
        _keep(row, chunk.end - len(rest), rest, batch)

    def _restart(self, row: HeadRow, start: int) -> None:
        """Begin anew at a place."""
        row.shadow.num_computed, row.start = 0, start
        self._rows.cache.shrink(row.shadow, 0)

    def _tokens(self, sequence: Sequence, begin: int, end: int) -> np.ndarray:
        """The tokens behind places `begin` to `end` (exclusive)."""
        tokens = sequence.history.as_array(begin + 1, end + 1)
        if begin == 0 and self.runner.head.blanks_first:
            tokens = tokens.copy()
            tokens[0] = -1
        return tokens

    # -- drafts ----------------------------------------------------------------------------------

    def propose(self, sequences: Seq[Sequence], count: int) -> Proposal:
        """As `by_model.Drafter`. Once it has failed, there are no drafts any more: answers do without."""
        begin = time.perf_counter()
        nothing: list[list[int]] = [[] for _ in sequences]
        if self._broken:
            return Proposal(nothing, 0.0, caught_up=True)
        try:
            self._rows.begin_turn()
            rows = [self._ready(sequence, count) for sequence in sequences]
            live = [(s, row) for s, row in zip(sequences, rows, strict=True) if row is not None]
            caught_up = any(len(s.history) - 1 - row.end > self.num_tokens + 1 for s, row in live)
            drafts = iter(self._draft(live, count) if live else [])
        except Exception:
            self._fail()
            return Proposal(nothing, time.perf_counter() - begin, caught_up=True)
        tokens = [next(drafts) if row is not None else [] for row in rows]
        return Proposal(tokens, time.perf_counter() - begin, caught_up or not live)

    def _ready(self, sequence: Sequence, count: int) -> HeadRow | None:
        """The row of a sequence, with room for a draft and its newest token's states; None: it has none."""
        row, end = self._rows.get(sequence), len(sequence.history) - 1
        if row is None or not row.kept_begin < end <= row.kept_end:
            return None
        begin = min(row.end, end - 1)  # what it gave for the last place is not kept
        if begin < max(row.kept_begin, row.start):
            self._restart(row, max(begin, row.kept_begin))
        row.shadow.num_computed = max(begin, row.start) - row.start
        self._rows.cache.shrink(row.shadow, row.shadow.num_computed)
        fits = len(sequence.history) + count <= self._rows.limits.model_max_length
        if fits and self._rows.extend(row, end + count - 1 - row.end):
            return row
        self._rows.drop(sequence)
        return None

    def _draft(self, live: Seq[tuple[Sequence, HeadRow]], count: int) -> list[list[int]]:
        """`count` guesses for each."""
        plan, tokens, slots, places = Plan(), [], [], []
        for sequence, row in live:
            begin, end = row.end, len(sequence.history) - 1
            plan.chunks.append(Chunk(row.shadow, row.shadow.num_computed, end - begin))
            tokens.append(self._tokens(sequence, begin, end))
            slots.append(np.full(end - begin, row.shadow.slot))
            places.append(np.arange(begin, end))
        step, shadows, further = self._builder.build(plan), [row.shadow for _, row in live], []
        step.chunk_samples = np.ones(len(live), bool)
        for chunk in plan.chunks:
            chunk.sequence.num_computed = chunk.end
        for _ in range(count - 1):
            further.append(self._builder.build(Plan(decodes=[*shadows])))
            for shadow in shadows:
                shadow.num_computed += 1
        for chunk in plan.chunks:  # what follows is of guesses: it is computed anew, from states
            chunk.sequence.num_computed = chunk.end
        ids, owners, at = (np.concatenate(each) for each in (tokens, slots, places))
        guesses = self.runner.draft(step, ids, owners, at, further)
        return [row.tolist() for row in guesses]


def _keep(row: HeadRow, place: int, lines: Seq[int], batch: _Batch) -> None:
    """Keep the states of the tokens from `place` on, which are in those lines of the step."""
    if not lines:
        return
    if not row.kept_begin <= place <= row.kept_end:
        row.kept_begin = place
    row.kept_end = place + len(lines)
    row.kept_begin = max(row.kept_begin, row.kept_end - KEPT)
    batch.kept += [(row.shadow.slot, place + offset, line) for offset, line in enumerate(lines)]
