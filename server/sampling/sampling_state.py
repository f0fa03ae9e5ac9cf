"""How the tokens of every running sequence are chosen, by slot.

Options are written when a sequence enters the batch and read by index every step, so that a step
builds nothing per request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from server.device.transfer import to_device
from server.sampling.lines import Lines
from server.sampling.slot_values import SlotValues
from server.sampling.stage import SlotSpace, Stage
from server.sampling.stages import STAGES
from server.sampling.token_table import TokenTable
from server.scheduling.beam_search import candidates_needed
from server.scheduling.step import SampleInput, SlotStart, StepInput

NO_TOKEN = -1
"""Fills a slot's list of tokens that end its answer."""

OF_BEAMS = -1.0
"""In place of the temperature of slots whose tokens are not chosen by themselves."""


class SamplingState:
    """What each slot's request asks for.

    Args:
        num_slots: most sequences that run at once.
        vocab_size: columns of the logits.
        device: where the logits are.
        tokens: of each slot's sequence.
        stages: what there is to ask for.
        num_lines: most lines of a step, where some follow drafted tokens.

    Attributes:
        stages: in the order in which they change scores.
        wanting: bool [stages, num_slots], which slots want each of them.
        changed, filtered: bool [num_slots], which want any that is no filter, and any that is.
        temperatures: float64 [num_slots], by which scores are divided where tokens are drawn.
        draws: of each slot, the temperature if its next token is drawn, 0 if it is the likeliest one, or
            `OF_BEAMS`.
        numbers: of each slot, what its noise depends on: the seed, and which answer of its request it is.
    """

    def __init__(
        self,
        num_slots: int,
        vocab_size: int,
        device: torch.device,
        tokens: TokenTable,
        stages: Sequence[type[Stage]] | None = None,
        num_lines: int = 0,
    ) -> None:
        self.device = device
        self.tokens = tokens
        self.num_slots = num_slots
        self.vocab_size = vocab_size
        self.num_lines = max(num_slots, num_lines)
        space = SlotSpace(num_slots, self.num_lines, vocab_size, device, tokens)
        self.stages = [stage(space) for stage in (STAGES if stages is None else stages)]
        self.wanting = np.zeros((len(self.stages), num_slots), bool)
        self.changed = np.zeros(num_slots, bool)
        self.filtered = np.zeros(num_slots, bool)
        self.draws = SlotValues(1, num_slots, device)
        self.numbers = SlotValues(2, num_slots, device, whole=True)
        self.temperatures = np.ones(num_slots)
        self.num_beams = np.ones(num_slots, np.int64)
        self.candidates = np.zeros(num_slots, np.int64)
        self.ends = np.full((num_slots, 1), NO_TOKEN)
        self.beams = np.zeros(num_slots, bool)
        self.sampled_beams = np.zeros(num_slots, bool)
        self.logprobs = np.full(num_slots, -1, np.int64)
        self._taking = [stage for stage in self.stages if type(stage).take is not Stage.take]
        self._unsent = False

    # -- slots change hands and get tokens -----------------------------------------------------

    def prepare(self, step: StepInput) -> None:
        """Apply what changed in slots since the last step, and the drafts of this one."""
        if len(step.moved_from):
            self._copy(step.moved_from, step.moved_to)
        if len(step.beam_slots):
            self.record(step.beam_slots, step.beam_positions, step.beam_tokens)
        for start in step.starts:
            self.assign(start)
        self.tokens.start(step.starts)
        if len(step.draft_lines):  # behind what is known, where a wrong guess has no meaning
            self.tokens.record(*step.drafted(), step.draft_tokens)

    def assign(self, start: SlotStart) -> None:
        """Take a slot for a sequence."""
        slot, params, self._unsent = start.slot, start.params, True
        sampled, temperature = params.options["do_sample"], params.options["temperature"]
        self.temperatures[slot] = temperature if sampled else 1.0
        self.draws.set(slot, OF_BEAMS if params.uses_beams else temperature if sampled else 0.0)
        self.numbers.set(slot, params.options["seed"], start.answer)
        self.num_beams[slot] = params.num_beams
        self.candidates[slot] = candidates_needed(params)
        self.beams[slot] = params.uses_beams
        self.sampled_beams[slot] = sampled and params.uses_beams
        self.logprobs[slot] = -1 if params.logprobs is None else params.logprobs
        self._assign_ends(slot, params.eos_token_ids)
        self.changed[slot] = self.filtered[slot] = False
        for stage, wanting in zip(self.stages, self.wanting, strict=True):
            wants = stage.wants(params) and (sampled or not stage.is_filter)
            if wants:
                stage.assign(start)
                (self.filtered if stage.is_filter else self.changed)[slot] = True
            elif wanting[slot]:
                stage.release(slot)
            wanting[slot] = wants

    def _assign_ends(self, slot: int, ids: tuple[int, ...]) -> None:
        if len(ids) > self.ends.shape[1]:
            missing = len(ids) - self.ends.shape[1]
            self.ends = np.pad(self.ends, ((0, 0), (0, missing)), constant_values=NO_TOKEN)
        self.ends[slot] = NO_TOKEN
        self.ends[slot, : len(ids)] = ids

    def _copy(self, sources: np.ndarray, targets: np.ndarray) -> None:
        """Copy what is kept for slots `sources` to slots `targets` (beams that split)."""
        self.tokens.copy(sources, targets)
        self._unsent = True
        for stage, wanting in zip(self.stages, self.wanting, strict=True):
            some = wanting[sources]
            if some.any():
                stage.copy(sources[some], targets[some])

    def record(self, slots: np.ndarray, positions: np.ndarray, tokens: np.ndarray) -> None:
        """Slots got tokens, each at a place of its sequence, that the device does not know of."""
        if not slots.size:
            return
        self.tokens.record(slots, positions, tokens)
        for stage, wanting in zip(self.stages, self.wanting, strict=True):
            some = wanting[slots]
            if some.any():
                stage.record(slots[some], tokens[some])

    def take(self, sample: SampleInput) -> None:
        """Take in what is sent for the choice of a step's tokens."""
        for stage in self._taking:
            stage.take(sample)

    def flush(self) -> None:
        """Carry what was assigned to the device; before the next forward pass."""
        if not self._unsent:
            return
        self._unsent = False
        self.draws.flush()
        self.numbers.flush()
        for stage in self.stages:
            for values in stage.kept_values:
                values.flush()

    # -- which stages there are to apply -------------------------------------------------------

    def looked_at(self, slots: np.ndarray) -> np.ndarray:
        """bool [slots]: for which of them scores are looked at before a token is chosen."""
        found: np.ndarray = self.filtered[slots] | self.beams[slots]
        return found

    def masks(self, lines: Lines) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Masks for the choice of tokens, and which of them each line has: as `Choose` takes them."""
        if not self.changed[lines.slots].any():
            return None, None
        found = (stage.masks(lines) for stage in self.stages if stage.masks_choice)
        return next(found, (None, None))

    def stages_for(self, lines: Lines, *, filters: bool) -> Iterator[tuple[Stage, Lines]]:
        """The stages that any of `lines` wants, with the lines that do.

        Args:
            filters: those that are filters, or those that are not.
        """
        if not (self.filtered if filters else self.changed)[lines.slots].any():
            return  # nearly every step
        wanting = self.wanting[:, lines.slots]
        for index in np.flatnonzero(wanting.any(axis=1)).tolist():
            stage = self.stages[index]
            if stage.is_filter == filters:
                yield stage, lines.take(np.flatnonzero(wanting[index]))

    def wants_any(self, slots: np.ndarray) -> bool:
        """Whether any of these slots wants a stage."""
        return bool((self.changed[slots] | self.filtered[slots]).any())

    def is_plain(self, slots: np.ndarray) -> bool:
        """Whether beams of these slots are continued by the logits alone."""
        return not (self.changed[slots].any() or self.sampled_beams[slots].any())

    def on_device(self, values: np.ndarray) -> Tensor:
        """`values` beside the logits, without waiting for what is computed there."""
        return to_device(values, self.device)


def table_bytes(num_lines: int, vocab_size: int) -> int:
    """Memory on a GPU once requests ask for every option: the stages' tables, and room for scores."""
    scores = vocab_size * torch.float32.itemsize
    return num_lines * (scores + sum(stage.bytes_per_slot(vocab_size) for stage in STAGES))
