"""Choosing tokens where they stay on the device: by kernels of our own, each over all lines of a step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from server.device.captured_calls import CapturedCalls
from server.sampling.lines import GpuLines, Lines
from server.sampling.sampling_state import SamplingState
from server.sampling.slot_values import SlotTable
from server.sampling.stage import EXCLUDED, Stage
from server.sampling.step_logits import StepLogits
from server.sampling.verification import GpuDrafts

if TYPE_CHECKING:
    from server.sampling.triton.filters import Bounds

logger = logging.getLogger(__name__)


class GpuSampler:
    """Chooses the tokens of all sequences but beams.

    A token that was chosen on the device is the input of the next step: it goes to its place in the token
    table, and the host learns of it later. Where lines follow drafted tokens, the table gets of each sequence
    the first token that its draft did not foresee. Stages whose kernels can be captured run, with the choice,
    as one CUDA graph for each set of them; where a line wants another stage, all are launched one by one.

    Args:
        state: what each slot's request asks for.
    """

    def __init__(self, state: SamplingState) -> None:
        self._state = state
        device = state.device
        self._captured: CapturedCalls[Tensor] | None = None
        if device.type == "cuda":
            self._captured = CapturedCalls(device)
        self._cannot_capture = False
        self.room = SlotTable(state.num_lines, state.vocab_size, torch.float32, device)
        self._tokens = torch.zeros(state.num_lines, dtype=torch.int32, device=device)
        self._accepted = torch.zeros(state.num_lines, dtype=torch.int32, device=device)

    def flush(self) -> None:
        """Carry what was assigned to slots to the device; before the next forward pass."""
        self._state.flush()

    def sample(
        self,
        scores: Tensor,
        slots: Tensor,
        positions: Tensor,
        bounds: Bounds | None = None,
        *,
        keep: bool = True,
    ) -> Tensor:
        """Choose greedily or at random.

        Args:
            scores: [lines, vocab].
            slots: int32 [lines].
            positions: int32 [lines], place of the token that each line follows.
            bounds: what filters keep of the scores.
            keep: write the tokens to their places in the token table, too.

        Returns:
            int32 [lines], `FAILED` where the scores are not finite and for beams; stands until the next call.
        """
        from server.sampling.triton.sampling import sample

        state, tokens = self._state, self._tokens[: len(scores)]
        sample(
            scores, slots, positions, state.draws.on_device[0],
            state.numbers.on_device[0], state.numbers.on_device[1],
            state.tokens.tokens, tokens, bounds=bounds, keep=keep,
        )  # fmt: skip
        return tokens

    def choose(self, forward: StepLogits, slots: np.ndarray, positions: np.ndarray) -> Tensor:
        """The next token of each line.

        Args:
            forward: logits; overwritten.
            slots: of each line, but for padding.
            positions: place of the token that each line follows.

        Returns:
            int32 [lines], `FAILED` where the scores are not finite and for beams; stands until the next step.
        """
        lines = Lines.of_step(slots, positions)
        wanted = self._wanted(lines)
        if not wanted and forward.tokens is not None:
            if forward.drafts is not None:
                self._accept(forward.tokens, self._gpu_lines(forward, self.room))
            return forward.tokens
        for stage, wanting in wanted.values():
            stage.send(wanting)
        run = partial(self._run, forward, wanted)
        captures = forward.tokens is not None and all(stage.in_graph for stage, _ in wanted.values())
        if self._captured is None or not captures:
            return run()
        key = (len(forward.logits), forward.drafts is not None), *wanted
        if key not in self._captured:
            self._make_tables([stage for stage, _ in wanted.values()])
        return self._replay(key, run)

    def _wanted(self, lines: Lines) -> dict[int, tuple[Stage, Lines]]:
        """The stages to apply, by number, with the lines that want them."""
        state = self._state
        if not state.wants_any(lines.slots):
            return {}
        wanting = state.wanting[:, lines.slots] & ~state.beams[lines.slots]
        wanted = {}
        for index in np.flatnonzero(wanting.any(axis=1)).tolist():
            stage, some = state.stages[index], lines.take(np.flatnonzero(wanting[index]))
            if stage.needed(some):
                wanted[index] = stage, some
        return wanted

    def _make_tables(self, stages: list[Stage]) -> None:
        """Make what `stages` use: within a graph it would be made, and set to zero, at every replay."""
        tables = [table for stage in stages for table in stage.kept_tables]
        if not all(stage.only_masks for stage in stages):
            tables.append(self.room)
        for table in tables:
            table.make()

    def _replay(self, key: tuple[object, ...], run: Callable[[], Tensor]) -> Tensor:
        """`run`, which is captured when it is first needed; without that it is slower, no more."""
        assert self._captured is not None
        if key not in self._captured:
            if self._cannot_capture:
                return run()
            try:
                self._captured.capture(key, run)
            except RuntimeError:
                logger.exception(
                    "a choice of tokens could not be captured: new kinds are launched from now on"
                )
                self._cannot_capture = True
                return run()
        return self._captured.replay(key)

    def _run(
        self,
        forward: StepLogits,
        wanted: dict[int, tuple[Stage, Lines]],
        room: SlotTable | None = None,
    ) -> Tensor:
        """Launch the stages and the choice."""
        scores, lines = forward.logits, self._gpu_lines(forward, room or self.room)
        for stage, wanting in wanted.values():
            if stage.in_graph:
                scores = stage.launch(scores, lines)
            elif stage.is_filter:
                self._filter(scores, lines, stage, wanting)
            else:
                if not stage.only_masks and scores.dtype != torch.float32:
                    scores = lines.float_scores(scores).copy_(scores)
                stage.apply(scores, wanting)
        keep = lines.drafts is None
        tokens = self.sample(scores, lines.slots, lines.positions, lines.bounds, keep=keep)
        self._accept(tokens, lines)
        for stage, _ in wanted.values():
            if stage.in_graph:
                stage.note(tokens, lines)
        return tokens

    @staticmethod
    def _gpu_lines(forward: StepLogits, room: SlotTable) -> GpuLines:
        assert forward.slots is not None and forward.positions is not None
        return GpuLines(forward.slots, forward.positions, room, drafts=forward.drafts)

    def _accept(self, tokens: Tensor, lines: GpuLines) -> None:
        """Find out how far drafts are right, if there are any."""
        if lines.drafts is not None:
            from server.sampling.triton.drafts import accept

            lines.accepted, table = self._accepted[: len(tokens)], self._state.tokens.tokens
            accept(tokens, lines.slots, lines.positions, lines.drafts, table, lines.accepted)

    def _filter(self, scores: Tensor, lines: GpuLines, stage: Stage, wanting: Lines) -> None:
        """Apply a filter that is none of our kernels, behind those that are; in place."""
        state = self._state
        at = state.on_device(wanting.at)
        chosen, part = scores[at], scores[at].float()
        if lines.bounds is not None:
            beyond = lines.bounds.peaks[at].unsqueeze(1) - part > lines.bounds.borders[at].unsqueeze(1)
            part.masked_fill_(beyond, EXCLUDED)
        part /= state.draws.column(0, wanting.slots)
        stage.apply(part, wanting.moved())
        scores[at] = chosen.masked_fill_(part == EXCLUDED, EXCLUDED)

    def warm_up(self, forward: StepLogits) -> None:
        """Choose with every stage alone and with all, for slots that want none: all kernels are compiled."""
        state = self._state
        nobody = Lines.of_step(*np.zeros((2, 0), np.int64))
        launched = {i: (stage, nobody) for i, stage in enumerate(state.stages) if stage.in_graph}
        room = SlotTable(len(forward.logits), state.vocab_size, torch.float32, state.device)
        with ExitStack() as stack:
            for stage, _ in launched.values():
                for table in stage.kept_tables:
                    stack.enter_context(table.stand_in())
            for wanted in ({}, *({i: stage} for i, stage in launched.items()), launched):
                for drafts in (None, nothing_drafted(forward.logits)):
                    tokens = self._run(replace(forward, drafts=drafts), wanted, room)
        tokens.tolist()  # what fails shall fail here


def nothing_drafted(scores: Tensor) -> GpuDrafts:
    """The drafts of a step that has none, for kernels to be compiled; aligned, as those that are sent are."""
    nothing = (torch.zeros(len(scores), dtype=torch.int32, device=scores.device) for _ in range(3))
    return GpuDrafts(*nothing)
