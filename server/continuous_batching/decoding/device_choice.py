"""Choosing tokens where they stay on the device: by kernels of our own, each over all lines of a step. The
meanings of the options are those of `processors`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from server.continuous_batching.captured import CapturedCalls
from server.continuous_batching.decoding.device_rows import DeviceRows
from server.continuous_batching.decoding.processors import EXCLUDED, apply_filters, hold_eos
from server.continuous_batching.decoding.rows import RowTable
from server.continuous_batching.decoding.step_logits import StepLogits
from server.continuous_batching.scheduler.request import Sequence

if TYPE_CHECKING:
    from server.continuous_batching.kernels.triton_penalties import History

logger = logging.getLogger(__name__)


def table_bytes(num_rows: int, vocab_size: int) -> int:
    """Memory that all of a `Workspace` takes, once requests ask for options of every kind."""
    floats, booleans = 4, 1  # bias, counts, scores, listed; seen
    return num_rows * vocab_size * (floats * torch.float32.itemsize + booleans * torch.bool.itemsize)


@dataclass(frozen=True, slots=True)
class Workspace:
    """What the kernels read and write beside the logits; always in the same place.

    Attributes:
        bias: float32 [rows, vocab], where any line is biased.
        history: of the rows, where any line is penalised.
        scores: float32, room for as many as there are logits, where any line's are biased or penalised.
        listed: the same, where any line is filtered.
    """

    bias: Tensor | None = None
    history: History | None = None
    scores: Tensor | None = None
    listed: Tensor | None = None


class DeviceChoice:
    """Chooses the tokens of all sequences but beams, whose lines get one that means nothing.

    Args:
        table: the rows' options, tables over the vocabulary among them.
        device_rows: the same on the device.
    """

    def __init__(self, table: RowTable, device_rows: DeviceRows) -> None:
        self._table = table
        self._rows = device_rows
        self._captured: CapturedCalls[Tensor] | None = None
        if table.device.type == "cuda":
            self._captured = CapturedCalls(table.device)
        self._cannot_capture = False
        self._rooms: dict[str, Tensor] = {}

    def choose(self, forward: StepLogits, rows: np.ndarray, sequences: Seq[Sequence]) -> Tensor:
        """The next token of each line.

        Args:
            forward: logits; overwritten.
            rows: table row of each line, but for padding.
            sequences: those of the lines.

        Returns:
            int32 [lines], `FAILED` where the scores are not finite; stands until the next step.
        """
        table = self._table
        others = ~table.beams[rows]
        filtered = table.filtered[rows] & table.samples[rows]
        typical = filtered & (table.floats["typical_p"][rows] < 1.0)
        wanted = (  # which options any line has
            bool((table.biased[rows] & others).any()),
            bool((table.penalised[rows] & others).any()),
            bool((filtered & ~typical).any()),
        )
        short, generated = self._held(rows, sequences)
        if short or typical.any():
            space = self._workspace(*wanted)
            scores = self._penalised(forward, space)
            hold_eos(scores, table, rows, generated)
            self._exclude_untypical(scores, rows, np.flatnonzero(typical))
            return self._sample(scores, forward, space)
        if forward.tokens is not None and not any(wanted):
            return forward.tokens
        run = partial(self._run, forward, self._workspace(*wanted))
        if forward.tokens is None or self._captured is None:
            return run()
        return self._replay((len(forward.logits), *wanted), run)

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

    def warm_up(self, forward: StepLogits) -> None:
        """Choose with every set of options, for rows that have none, so that all kernels are compiled."""
        from server.continuous_batching.kernels.triton_penalties import History

        room = torch.zeros_like(forward.logits, dtype=torch.float32)
        history = History(room.bool(), room)  # no row without options reads or writes it
        for biased, penalised, filtered in product((False, True), repeat=3):
            space = Workspace(
                bias=room if biased else None,
                history=history if penalised else None,
                scores=room.clone() if biased or penalised else None,
                listed=room if filtered else None,
            )
            tokens = self._run(forward, space)
        tokens.tolist()  # what fails shall fail here

    def _held(self, rows: np.ndarray, sequences: Seq[Sequence]) -> tuple[bool, np.ndarray]:
        """(whether any answer that could end may not yet; tokens that each has, where any has a minimum)."""
        table = self._table
        can_end = (table.eos_count[rows] > 0) & ~table.beams[rows]
        least = np.where(can_end, table.integers["min_new_tokens"][rows], 0)
        if not least.any():
            return False, np.zeros_like(rows)
        generated = np.fromiter((s.length - s.request.prompt_length for s in sequences), np.int64)
        return bool((generated < least).any()), generated

    def _run(self, forward: StepLogits, space: Workspace) -> Tensor:
        return self._sample(self._penalised(forward, space), forward, space)

    def _penalised(self, forward: StepLogits, space: Workspace) -> Tensor:
        from server.continuous_batching.kernels.triton_penalties import penalise

        if space.scores is None:
            return forward.logits
        assert forward.rows is not None
        options = self._rows.penalties
        return penalise(forward.logits, forward.rows, options, space.bias, space.history, space.scores)

    def _sample(self, scores: Tensor, forward: StepLogits, space: Workspace) -> Tensor:
        from server.continuous_batching.kernels.triton_filters import find_bounds

        rows, positions = forward.rows, forward.positions
        assert rows is not None and positions is not None
        bounds = None
        if space.listed is not None:
            bounds = find_bounds(scores, rows, self._rows.filters, space.listed)
        return self._rows.sample(scores, rows, positions, bounds=bounds, history=space.history)

    def _exclude_untypical(self, scores: Tensor, rows: np.ndarray, chosen: np.ndarray) -> None:
        """Filters of the lines `chosen`, in place, by sorting: what is typical is not the greatest."""
        if chosen.size:
            lines = self._table.on_device(chosen)
            part = scores[lines]
            excluded = apply_filters(part.float(), self._table, rows[chosen]) == EXCLUDED
            scores[lines] = part.masked_fill_(excluded, EXCLUDED)

    def _workspace(self, biased: bool, penalised: bool, filtered: bool) -> Workspace:
        from server.continuous_batching.kernels.triton_penalties import History

        table = self._table
        return Workspace(
            bias=table.bias if biased else None,
            history=History(table.seen, table.counts) if penalised else None,
            scores=self._room("scores") if biased or penalised else None,
            listed=self._room("listed") if filtered else None,
        )

    def _room(self, name: str) -> Tensor:
        """Made when it is first needed: it takes memory by rows and vocabulary."""
        if name not in self._rooms:
            self._rooms[name] = torch.empty(self._table.shape, dtype=torch.float32, device=self._table.device)
        return self._rooms[name]
