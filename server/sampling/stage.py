"""The contract of a sampling stage: one option, or a few that are applied together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from server.device.transfer import to_device
from server.sampling.lines import GpuLines, Lines
from server.sampling.slot_values import SlotTable, SlotValues
from server.sampling.token_table import TokenTable
from server.scheduling.params import SamplingParams
from server.scheduling.step import SampleInput, SlotStart

EXCLUDED = float("-inf")
"""The score of a token that may not be chosen."""


@dataclass(frozen=True, slots=True)
class SlotSpace:
    """What a stage is made for.

    Attributes:
        num_slots: most sequences that run at once; slot `num_slots` stands for padding.
        num_lines: most lines of a step whose tokens are chosen.
        vocab_size: columns of the logits.
        device: where the logits are.
        tokens: prompt and answer so far of each slot's sequence, drafted tokens included.
    """

    num_slots: int
    num_lines: int
    vocab_size: int
    device: torch.device
    tokens: TokenTable


class Stage(ABC):
    """Changes the scores of the lines whose requests ask for it, before tokens are chosen.

    A stage keeps what it needs by slot, in `values` and `table`. It has a form in torch's operators, `apply`,
    which runs on every device; and, if `in_graph`, kernels that take its place on a GPU, `launch`, so that
    steps with the option can be replayed as CUDA graphs.

    Beams score log probabilities, other lines logits, as in transformers.

    Attributes:
        options: fields of `GenerationConfig` that it reads.
        is_filter: for lines whose token is drawn only. The scores it sees are divided by the temperature, and
            it may only exclude tokens.
        masks_choice: all that it does is in `masks`, which the choice of tokens can apply by itself: of one
            stage.
        only_masks: it may only exclude tokens, so that the scores can stay in the model's type.
        in_graph: `launch` reads and writes tensors that stay where they are, and waits for nothing.
        bytes_per_token: memory that its tables take for one slot and one token of the vocabulary.
    """

    options: ClassVar[tuple[str, ...]]
    is_filter: ClassVar[bool] = False
    masks_choice: ClassVar[bool] = False
    only_masks: ClassVar[bool] = False
    in_graph: ClassVar[bool] = False
    bytes_per_token: ClassVar[int] = 0

    def __init__(self, space: SlotSpace) -> None:
        self.space = space
        self.kept_values: list[SlotValues] = []
        self.kept_tables: list[SlotTable] = []

    @classmethod
    def bytes_per_slot(cls, vocab_size: int) -> int:
        """Memory that its tables take for one slot."""
        return vocab_size * cls.bytes_per_token

    # -- what is kept by slot ------------------------------------------------------------------

    def values(self, count: int, *, whole: bool = False) -> SlotValues:
        """New numbers of each slot; 0 wherever the stage is off."""
        made = SlotValues(count, self.space.num_slots, self.space.device, whole=whole)
        self.kept_values.append(made)
        return made

    def table(self, dtype: torch.dtype, columns: int | None = None, *, by_line: bool = False) -> SlotTable:
        """A new line of each slot: over the vocabulary, or of so many `columns`.

        Args:
            by_line: for each line of a step instead: what is there is of use in that step only.
        """
        size = self.space.vocab_size if columns is None else columns
        count = self.space.num_lines if by_line else self.space.num_slots
        made = SlotTable(count, size, dtype, self.space.device)
        self.kept_tables.append(made)
        return made

    def on_device(self, values: np.ndarray) -> Tensor:
        """`values` beside the logits, without waiting for what is computed there."""
        return to_device(values, self.space.device)

    @abstractmethod
    def wants(self, params: SamplingParams) -> bool:
        """Whether a request asks for it; `params.options` holds its options of sampling."""

    def assign(self, start: SlotStart) -> None:  # noqa: B027
        """A sequence that wants the stage takes a slot."""

    def release(self, slot: int) -> None:
        """The slot's next sequence does not want the stage."""
        for values in self.kept_values:
            values.set(slot, *[0] * len(values.host))

    def copy(self, sources: np.ndarray, targets: np.ndarray) -> None:  # noqa: B027
        """Copy what is kept for slots `sources` to slots `targets` (beams that split)."""

    def record(self, slots: np.ndarray, tokens: np.ndarray) -> None:  # noqa: B027
        """Slots that want the stage got tokens, which the host chose; a slot may be there several times."""

    def take(self, sample: SampleInput) -> None:  # noqa: B027
        """What is sent for the choice of this step's tokens; the forward pass is under way."""

    # -- the torch form --------------------------------------------------------------------------

    @abstractmethod
    def apply(self, scores: Tensor, lines: Lines) -> None:
        """Change the scores of `lines` in place.

        Args:
            scores: [lines, vocab], of these and other lines; float32 unless `only_masks`.
            lines: those that want the stage; ``scores[lines.at]`` are theirs.
        """

    def masks(self, lines: Lines) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Of a stage that `masks_choice`: the masks, and which of them each line has, as `Choose` takes them.

        Args:
            lines: all of a step.
        """
        return None, None

    # -- on a GPU --------------------------------------------------------------------------------

    def needed(self, lines: Lines) -> bool:
        """Whether the stage has anything to do for any of `lines`, which want it."""
        return True

    def send(self, lines: Lines) -> None:  # noqa: B027
        """Bring what only the host knows to where `launch` reads it; the forward pass is under way."""

    def launch(self, scores: Tensor, lines: GpuLines) -> Tensor:
        """Start the kernels, for all lines; those whose slots do not want the stage stay as they are.

        Args:
            scores: [lines, vocab], float32 or in the model's type.

        Returns:
            The new scores: `scores`, changed in place if tokens are only excluded, or
            ``lines.float_scores(scores)``.
        """
        raise NotImplementedError

    def note(self, tokens: Tensor, lines: GpuLines) -> None:  # noqa: B027
        """Start to record int32 [lines] `tokens`, just chosen, -1 where none is; runs where `launch` does."""


def least_kept(params: SamplingParams) -> int:
    """Tokens that a filter has to leave: beam search needs a way on beside every end, as in transformers."""
    return len(params.eos_token_ids) + 1 if params.uses_beams else 1
