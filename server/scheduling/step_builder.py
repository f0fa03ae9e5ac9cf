"""Turns a plan into the input of a worker's step."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from server.scheduling.beam_search import BeamSearch
from server.scheduling.block_pool import BlockMove
from server.scheduling.block_table import NO_BLOCK
from server.scheduling.plan import Chunk, Plan
from server.scheduling.request import Phase, Request, Sequence
from server.scheduling.step import SlotStart, StepInput

_NO_MOVES = StepInput()


@dataclass(slots=True)
class BeamMoves:
    """What became of beams since the last step: the worker learns of it with the next one.

    Attributes:
        copies: (slot, slot): the second beam continues what the first one holds.
        tokens: (slot, position, token): the newest token of a beam.
    """

    copies: list[tuple[int, int]] = field(default_factory=list)
    tokens: list[tuple[int, int, int]] = field(default_factory=list)


class StepBuilder:
    """Builds the inputs of steps; block tables are sent once.

    Args:
        longest_first: put the decodes with the longest contexts first: on a GPU, attention begins in this
            order and is not left with a long one at the end.
    """

    def __init__(self, *, longest_first: bool) -> None:
        self._longest_first = longest_first
        self.moves = BeamMoves()

    def build(self, plan: Plan) -> StepInput:
        """The worker's step for `plan`, but for what `block_moves` has; its decodes may be put in another
        order."""
        if self._longest_first and not plan.drafts:  # which name their lines
            plan.decodes.sort(key=lambda sequence: -sequence.num_computed)
        step = StepInput(
            starts=[start for request in plan.joined for start in _starts(request)],
            decode_slots=np.array([s.slot for s in plan.decodes], np.int32),
            decode_positions=np.array([s.num_computed for s in plan.decodes], np.int32),
        )
        if self.moves.tokens:
            self._take_moves(step)
        if plan.drafts:
            step.draft_lines = np.array([draft.line for draft in plan.drafts], np.int32)
            step.draft_lengths = np.array([len(draft.tokens) for draft in plan.drafts], np.int32)
            step.draft_tokens = np.concatenate([draft.tokens for draft in plan.drafts]).astype(np.int32)
        if plan.chunks:
            redone = [chunk for chunk in plan.chunks if chunk.decoded]
            chunks = [chunk for chunk in plan.chunks if not chunk.decoded] if redone else plan.chunks
            step.redone_slots, step.redone_starts, step.redone_ends = _places(redone)
            step.chunk_slots, step.chunk_starts, step.chunk_ends = _places(chunks)
            step.chunk_samples = np.array([chunk.samples for chunk in chunks], bool)
            if plan.num_scored:
                _add_scored(step, chunks)
        self._add_tables(step, plan.sequences())
        return step

    def _take_moves(self, step: StepInput) -> None:
        moves, self.moves.copies, self.moves.tokens = self.moves.copies, [], self.moves.tokens
        copies = np.array(moves, np.int32).reshape(-1, 2)
        step.moved_from, step.moved_to = copies[:, 0], copies[:, 1]
        tokens = np.array(self.moves.tokens, np.int32)
        step.beam_slots, step.beam_positions, step.beam_tokens = tokens[:, 0], tokens[:, 1], tokens[:, 2]
        self.moves.tokens = []

    def _add_tables(self, step: StepInput, sequences: Seq[Sequence]) -> None:
        """The blocks that the worker does not know of yet."""
        groups: list[int] = []
        slots: list[int] = []
        places: list[int] = []
        blocks: list[int] = []
        for sequence in sequences:
            if not sequence.stale:
                continue
            sequence.stale = False
            for group, table in enumerate(sequence.tables):
                new = table.blocks[table.mirrored :]
                groups += [group] * len(new)
                slots += [sequence.slot] * len(new)
                places += range(table.mirrored, table.mirrored + len(new))
                blocks += new
                table.mirrored = len(table.blocks)
        if blocks:
            columns = np.array([groups, slots, places, blocks], np.int32)
            if NO_BLOCK in blocks:  # behind a window
                columns = columns[:, columns[3] != NO_BLOCK]
            step.table_groups, step.table_slots, step.table_places, step.table_blocks = columns


def block_moves(plan: Plan, block_size: int) -> StepInput:
    """The swaps and copies of `plan`, which precede its forward pass."""
    if not (plan.swap_out or plan.swap_in or plan.copies):
        return _NO_MOVES  # nearly every step
    written = frozenset(plan.written_blocks(block_size)) if plan.swap_out else frozenset()
    return StepInput(
        swap_out=_array(plan.swap_out),
        swap_in=_array(plan.swap_in),
        copies=_array(plan.copies),
        written_blocks=written,
    )


def beam_scores(sequences: Iterable[Sequence]) -> np.ndarray:
    """float32 [beams]: accumulated log probabilities of the beams among `sequences`."""
    searches = {s.request.id: s.request.beams for s in sequences if s.request.beams is not None}
    return np.concatenate([np.empty(0, np.float32), *(search.scores for search in searches.values())])


def _starts(request: Request) -> list[SlotStart]:
    """The sequences of a request that entered the batch, or split into answers."""
    if request.phase is not Phase.RUNNING:
        return []  # it was preempted in the step that admitted it
    if request.params.uses_beams and request.beams is None:
        request.beams = BeamSearch(request.params)
    return [
        SlotStart(
            sequence.slot,
            request.params,
            sequence.index,
            request.prompt_length,
            sequence.history.as_array(0, len(sequence.history)),
        )
        for sequence in request.sequences
    ]


def _places(chunks: Seq[Chunk]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(slots, starts, ends), int32 [chunks]."""
    slots = np.array([chunk.sequence.slot for chunk in chunks], np.int32)
    starts = np.array([chunk.start for chunk in chunks], np.int32)
    return slots, starts, np.array([chunk.end for chunk in chunks], np.int32)


def _add_scored(step: StepInput, chunks: Seq[Chunk]) -> None:
    """The tokens of `chunks` whose successors' log probabilities are reported."""
    runs = [
        (index, *chunk.scored, chunk.sequence.request.params.prompt_logprobs or 0)
        for index, chunk in enumerate(chunks)
        if chunk.num_scored
    ]
    columns = np.array(runs, np.int32).T
    step.scored_chunks, step.scored_starts, step.scored_ends, step.scored_tops = columns


def _array(moves: Seq[BlockMove]) -> np.ndarray:
    return np.array(moves, np.int64).reshape(-1, 3)
