"""What passes between the scheduler's side and a worker: plain arrays, which can cross to another process.

`StepInput` starts a forward pass. `SampleInput` follows with what the choice of tokens needs. `StepResult`
comes back. Positions are places of tokens in their sequence, counted from 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from server.scheduling.beam_search import Candidates
from server.scheduling.params import SamplingParams
from server.text.logprob import TokenLogprob

FAILED = -1
"""Stands for the token of a sequence whose scores are not finite."""


def _nothing(dtype: type, *shape: int) -> Callable[[], np.ndarray]:
    """Gives the same empty array to all steps, in which most of what they may have is not there."""
    shared: np.ndarray = np.empty(shape or 0, dtype)
    shared.flags.writeable = False
    return repeat(shared).__next__  # without a call in Python: a step has dozens of them


no_integers = _nothing(np.int32)
no_moves = _nothing(np.int64, 0, 3)
_no_truths = _nothing(bool)
_no_scores = _nothing(np.float32)
_no_masks = _nothing(np.int32, 0, 0)
_NO_INTEGERS = no_integers()


@dataclass(slots=True)
class SlotStart:
    """A sequence that takes a slot; whatever was kept for the slot is replaced.

    Attributes:
        slot: the place in the batch.
        params: how its tokens are chosen.
        answer: which answer of its request it is.
        prompt_length: tokens of the prompt.
        tokens: int32 [prompt_length + generated], all that are known.
    """

    slot: int
    params: SamplingParams
    answer: int
    prompt_length: int
    tokens: np.ndarray


@dataclass(slots=True)
class StepInput:
    """One step of a worker.

    Attributes:
        moved_from, moved_to: int32 [moves], slots: a beam splits, and what is kept for the second becomes
            what is kept for the first.
        beam_slots, beam_positions, beam_tokens: int32 [beams], the newest tokens of beams, which
            the collector chose.
        starts: sequences that take slots.
        swap_out: int64 [n, 3], (group of layers, device block, CPU block).
        swap_in: int64 [n, 3], (group, CPU block, device block); no other part of the step touches them.
        copies: int64 [n, 3], (group, device block, device block).
        written_blocks: (group, device block) that copies and forward pass write to, where there are swaps
            out.
        table_groups, table_slots, table_places, table_blocks: int32 [changes], block tables: in a group, the
            block of a sequence at a place.
        decode_slots, decode_positions: int32 [decodes], sequences whose newest token is computed.
        draft_lines, draft_lengths: int32 [drafts], which of the decodes are followed by drafted tokens, and
            by how many.
        draft_tokens: int32 [drafted], those of all drafts.
        redone_slots, redone_starts, redone_ends: int32 [runs], runs of known tokens of which each is computed
            as one more decode, and nothing is chosen.
        chunk_slots, chunk_starts, chunk_ends: int32 [chunks], runs of known tokens to compute as prompts.
        chunk_samples: bool [chunks], whether the token behind a chunk is chosen.
        scored_chunks, scored_starts, scored_ends: int32 [runs], runs of tokens of chunks: the log probability
            of the token behind each is reported.
        scored_tops: int32 [runs], and so many of the likeliest tokens beside it.
        state_chunks, state_starts, state_ends: int32 [runs], tokens of chunks whose hidden states go back.
        state_sums: bool [runs], of which only the sum does: what a prompt is pooled of, chunk by chunk.
    """

    moved_from: np.ndarray = field(default_factory=no_integers)
    moved_to: np.ndarray = field(default_factory=no_integers)
    beam_slots: np.ndarray = field(default_factory=no_integers)
    beam_positions: np.ndarray = field(default_factory=no_integers)
    beam_tokens: np.ndarray = field(default_factory=no_integers)
    starts: list[SlotStart] = field(default_factory=list)
    swap_out: np.ndarray = field(default_factory=no_moves)
    swap_in: np.ndarray = field(default_factory=no_moves)
    copies: np.ndarray = field(default_factory=no_moves)
    written_blocks: frozenset[tuple[int, int]] = frozenset()
    table_groups: np.ndarray = field(default_factory=no_integers)
    table_slots: np.ndarray = field(default_factory=no_integers)
    table_places: np.ndarray = field(default_factory=no_integers)
    table_blocks: np.ndarray = field(default_factory=no_integers)
    decode_slots: np.ndarray = field(default_factory=no_integers)
    decode_positions: np.ndarray = field(default_factory=no_integers)
    draft_lines: np.ndarray = field(default_factory=no_integers)
    draft_lengths: np.ndarray = field(default_factory=no_integers)
    draft_tokens: np.ndarray = field(default_factory=no_integers)
    redone_slots: np.ndarray = field(default_factory=no_integers)
    redone_starts: np.ndarray = field(default_factory=no_integers)
    redone_ends: np.ndarray = field(default_factory=no_integers)
    chunk_slots: np.ndarray = field(default_factory=no_integers)
    chunk_starts: np.ndarray = field(default_factory=no_integers)
    chunk_ends: np.ndarray = field(default_factory=no_integers)
    chunk_samples: np.ndarray = field(default_factory=_no_truths)
    scored_chunks: np.ndarray = field(default_factory=no_integers)
    scored_starts: np.ndarray = field(default_factory=no_integers)
    scored_ends: np.ndarray = field(default_factory=no_integers)
    scored_tops: np.ndarray = field(default_factory=no_integers)
    state_chunks: np.ndarray = field(default_factory=no_integers)
    state_starts: np.ndarray = field(default_factory=no_integers)
    state_ends: np.ndarray = field(default_factory=no_integers)
    state_sums: np.ndarray = field(default_factory=_no_truths)

    @property
    def has_tokens(self) -> bool:
        """Whether there is anything to compute."""
        return bool(len(self.decode_slots) or self.has_runs)

    @property
    def has_runs(self) -> bool:
        """Whether there is more than decodes and drafts."""
        return bool(len(self.chunk_slots) or len(self.redone_slots))

    @property
    def known_tokens(self) -> int:
        """Tokens of all runs."""
        if not self.has_runs:
            return 0
        redone = (self.redone_ends - self.redone_starts).sum()
        return int((self.chunk_ends - self.chunk_starts).sum() + redone)

    def redone(self) -> tuple[np.ndarray, np.ndarray]:
        """(slots, positions) int32 of the tokens that are computed as decodes again."""
        return _each(self.redone_slots, self.redone_starts, self.redone_ends)

    @property
    def num_scored(self) -> int:
        """Tokens of the runs whose successors' log probabilities are reported."""
        return int((self.scored_ends - self.scored_starts).sum()) if len(self.scored_chunks) else 0

    def scored(self) -> tuple[np.ndarray, np.ndarray]:
        """(chunks, positions) int32 of the tokens whose successors' log probabilities are reported."""
        return _each(self.scored_chunks, self.scored_starts, self.scored_ends)

    def state_rows(self) -> np.ndarray:
        """int64 of the tokens whose hidden states are given back: places among the step's tokens."""
        lengths = self.chunk_ends - self.chunk_starts
        first = len(self.decode_slots) + self.draft_lengths.sum() + self.known_tokens - lengths.sum()
        chunks, positions = _each(self.state_chunks, self.state_starts, self.state_ends)
        rows: np.ndarray = (first + np.cumsum(lengths) - self.chunk_ends)[chunks].astype(np.int64) + positions
        return rows

    def sampled(self) -> tuple[np.ndarray, np.ndarray]:
        """(slots, positions) int64 of the lines of logits: those of the decodes, of the drafted tokens and of
        the last tokens of chunks that sample. The position is that of the token a line follows."""
        if not (len(self.draft_lines) or len(self.chunk_slots)):
            return self.decode_slots.astype(np.int64), self.decode_positions.astype(np.int64)
        lines = [(self.decode_slots, self.decode_positions)]
        if len(self.draft_lines):
            lines.append(self.drafted())
        lines.append((self.chunk_slots[self.chunk_samples], self.chunk_ends[self.chunk_samples] - 1))
        slots, positions = zip(*lines, strict=True)
        return np.concatenate(slots, dtype=np.int64), np.concatenate(positions, dtype=np.int64)

    def drafted(self) -> tuple[np.ndarray, np.ndarray]:
        """(slots, positions) int32 of the drafted tokens."""
        starts = self.decode_positions[self.draft_lines] + 1
        ahead = [start + np.arange(n) for start, n in zip(starts, self.draft_lengths, strict=True)]
        slots = np.repeat(self.decode_slots[self.draft_lines], self.draft_lengths)
        return slots, np.concatenate(ahead).astype(np.int32)


def _each(owners: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(owners, positions) int32 of every token of some runs."""
    if not len(owners):
        return _NO_INTEGERS, _NO_INTEGERS
    runs = zip(starts.tolist(), ends.tolist(), strict=True)
    positions = np.concatenate([np.arange(start, end, dtype=np.int32) for start, end in runs])
    return np.repeat(owners, ends - starts), positions


@dataclass(slots=True)
class SampleInput:
    """What the choice of a step's tokens needs beside what is kept for the slots.

    Attributes:
        beam_scores: float32 [beams], accumulated log probabilities of the step's beams, in the order of their
            lines.
        mask_slots, mask_positions: int32 [masks], the lines that only some tokens may follow, by slot and
            place of the token that they follow.
        masks: int32 [masks, words], which tokens these are: a bit for each, the lowest first.
    """

    beam_scores: np.ndarray = field(default_factory=_no_scores)
    mask_slots: np.ndarray = field(default_factory=no_integers)
    mask_positions: np.ndarray = field(default_factory=no_integers)
    masks: np.ndarray = field(default_factory=_no_masks)


@dataclass(slots=True)
class Reports:
    """Log probabilities of the sequences that want them.

    Attributes:
        lines: int64 [sequences, k], the line of each chosen token in the arrays below; -1: not wanted.
        counts: int64 [lines], how many of the likeliest tokens are reported.
        logprobs: float32 [lines], of the chosen tokens; without meaning for beams.
        top_ids, top_logprobs: int64 and float32 [lines, most], the likeliest tokens.
    """

    lines: np.ndarray
    counts: np.ndarray
    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray

    def of(self, sequence: int, token: int, *, place: int = 0, logprob: float | None = None) -> TokenLogprob:
        """The report for `token`, the one at `place` of those chosen for `sequence`.

        Args:
            logprob: that of the token, where it is not the one that the worker chose.
        """
        line = self.lines[sequence, place]
        count = self.counts[line]
        ids, logs = self.top_ids[line, :count].tolist(), self.top_logprobs[line, :count].tolist()
        if logprob is None:
            logprob = float(self.logprobs[line])
        return TokenLogprob(token, logprob, list(zip(ids, logs, strict=True)))


@dataclass(slots=True)
class PromptReports:
    """Log probabilities of tokens of prompts, in the order of `StepInput.scored`.

    Attributes:
        logprobs: float32 [tokens], of the token behind each.
        ranks: int64 [tokens], its place among all tokens, counted from 1.
        top_ids, top_logprobs: int64 and float32 [tokens, most], the likeliest tokens.
    """

    logprobs: np.ndarray
    ranks: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray

    def of(self, begin: int, tokens: list[int], count: int) -> list[TokenLogprob]:
        """The reports for `tokens`, from line `begin` on, each with `count` of the likeliest."""
        part = slice(begin, begin + len(tokens))
        ids, logs = self.top_ids[part, :count].tolist(), self.top_logprobs[part, :count].tolist()
        own = zip(tokens, self.logprobs[part].tolist(), self.ranks[part].tolist(), strict=True)
        return [
            TokenLogprob(token, logprob, list(zip(best, values, strict=True)), rank)
            for (token, logprob, rank), best, values in zip(own, ids, logs, strict=True)
        ]


@dataclass(slots=True)
class StepResult:
    """What a step chose; "sequences" are its decodes, then its chunks that sample.

    Attributes:
        tokens: int64 [sequences, k]; `FAILED` where the scores are not finite. Without meaning for beams.
        counts: int64 [sequences], how many of these are chosen: one, and one for each drafted token that was
            right.
        reports: None where no sequence wants one.
        candidates: best continuations of the beams, a request each, in the order of their lines.
        prompts: None where no prompt is reported on.
        states: float32 [lines, hidden], behind the last norm: of each token of the wanted runs, or their sum.
    """

    tokens: np.ndarray
    counts: np.ndarray
    reports: Reports | None = None
    candidates: list[Candidates] = field(default_factory=list)
    prompts: PromptReports | None = None
    states: np.ndarray | None = None


@dataclass(slots=True)
class Timings:
    """How long parts of steps took; they are known some steps later on a device that works by itself.

    Attributes:
        copies: (bytes, seconds) of swaps.
        prompts: (tokens, seconds) of steps that computed mostly prompts.
    """

    copies: list[tuple[int, float]] = field(default_factory=list)
    prompts: list[tuple[int, float]] = field(default_factory=list)
