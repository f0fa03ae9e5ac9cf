"""`min_new_tokens`: the least number of tokens before an answer may end."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from server.sampling.lines import Lines
from server.sampling.stage import EXCLUDED, SlotSpace, Stage
from server.scheduling.params import SamplingParams
from server.scheduling.step import SlotStart


class MinNewTokens(Stage):
    """On a GPU by torch's operators, outside of graphs: few tokens of few lines change, and not for long."""

    options = ("min_new_tokens",)
    only_masks = True

    def __init__(self, space: SlotSpace) -> None:
        super().__init__(space)
        self._first_end = self.values(1, whole=True)  # the first place where an end may be
        self._ends: dict[int, np.ndarray] = {}

    def wants(self, params: SamplingParams) -> bool:
        return params.options["min_new_tokens"] > 0 and bool(params.eos_token_ids)

    def assign(self, start: SlotStart) -> None:
        self._first_end.set(start.slot, start.prompt_length + start.params.options["min_new_tokens"])
        self._ends[start.slot] = np.array(start.params.eos_token_ids, np.int64)

    def _held(self, lines: Lines) -> np.ndarray:
        """Which of `lines` may not choose an end."""
        return np.flatnonzero(lines.positions + 1 < self._first_end.host[0, lines.slots])

    def needed(self, lines: Lines) -> bool:
        return bool(self._held(lines).size)

    def apply(self, scores: Tensor, lines: Lines) -> None:
        held = lines.take(self._held(lines))
        if not len(held):
            return
        ends = [self._ends[slot] for slot in held.slots.tolist()]
        rows = np.repeat(held.at, [len(tokens) for tokens in ends])
        scores[self.on_device(rows), self.on_device(np.concatenate(ends))] = EXCLUDED
