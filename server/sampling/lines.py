"""The lines of a step's logits: whose they are, and what they follow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from server.sampling.slot_values import SlotTable
from server.sampling.verification import DraftLines, GpuDrafts

if TYPE_CHECKING:
    from server.sampling.triton.filters import Bounds


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of the logits, as the host knows them.

    The token table holds everything that a line follows: its tokens are those of its slot up to and with its
    position. Where tokens are drafted, several lines are of one slot.

    Attributes:
        at: int64 [n], where each line is in the scores.
        slots: int64 [n].
        positions: int64 [n], place in its sequence of the token that each line follows.
        numbers: int64 [n], ascending, of each line in the step.
        drafts: which lines of the step follow drafted tokens.
    """

    at: np.ndarray
    slots: np.ndarray
    positions: np.ndarray
    numbers: np.ndarray
    drafts: DraftLines | None = None

    @classmethod
    def of_step(cls, slots: np.ndarray, positions: np.ndarray, drafts: DraftLines | None = None) -> Lines:
        """All lines of a step."""
        numbers = np.arange(len(slots))
        return cls(numbers, slots, positions, numbers, drafts)

    def __len__(self) -> int:
        return len(self.at)

    def take(self, chosen: np.ndarray) -> Lines:
        """Some of them, ascending."""
        return replace(
            self,
            at=self.at[chosen],
            slots=self.slots[chosen],
            positions=self.positions[chosen],
            numbers=self.numbers[chosen],
        )

    def moved(self) -> Lines:
        """The same lines where their scores, and no others, stand together."""
        return replace(self, at=np.arange(len(self.at)))

    def assumed(self) -> tuple[np.ndarray, np.ndarray]:
        """(which of these lines, token), int64: every drafted token that a line has behind it."""
        if self.drafts is None:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        numbers, tokens = self.drafts.assumed()
        present = np.isin(numbers, self.numbers)
        return np.searchsorted(self.numbers, numbers[present]), tokens[present]


@dataclass(slots=True)
class GpuLines:
    """Lines of the logits, as a GPU knows them; padding is at the end.

    Attributes:
        slots: int32 [lines].
        positions: int32 [lines], as `Lines.positions`.
        room: for scores of float32.
        bounds: what filters keep of the scores, once a stage has found that out.
        drafts: which of them follow drafted tokens; None: none does.
        accepted: int32 [lines], how many tokens of its draft are right for each; once tokens are chosen.
    """

    slots: Tensor
    positions: Tensor
    room: SlotTable
    bounds: Bounds | None = None
    drafts: GpuDrafts | None = None
    accepted: Tensor | None = None

    def float_scores(self, scores: Tensor) -> Tensor:
        """float32 [lines, vocab], where a stage writes what it makes of `scores`; may be `scores` itself."""
        return self.room.tensor.view(-1)[: scores.numel()].view(scores.shape)
