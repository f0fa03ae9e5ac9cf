"""`structured_outputs`: only tokens that the grammar of an answer allows next."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.device.transfer import to_device
from server.device.triton_support import jit, tl
from server.sampling.lines import GpuLines, Lines
from server.sampling.masks import exclude_function
from server.sampling.stage import SlotSpace, Stage
from server.scheduling.params import SamplingParams
from server.scheduling.step import SampleInput
from server.text.grammars.state import mask_words

_TILE = 2048
_NO_MASK = -1


class StructuredOutputs(Stage):
    """Applies the masks that come with each step: the states of the grammars are the host's.

    Goes behind all that changes scores, so that filters keep some of what is allowed.
    """

    options = ("structured_outputs",)
    masks_choice = True
    only_masks = True
    in_graph = True

    def __init__(self, space: SlotSpace) -> None:
        super().__init__(space)
        self._exclude = exclude_function(space.device)
        self._sample = SampleInput()
        self._rows: dict[tuple[int, int], int] = {}
        self._masks = self.table(torch.int32, mask_words(space.vocab_size), by_line=True)
        self._mask_of_line = torch.full(
            (space.num_lines + 1,), _NO_MASK, dtype=torch.int32, device=space.device
        )

    @classmethod
    def bytes_per_slot(cls, vocab_size: int) -> int:
        return mask_words(vocab_size) * torch.int32.itemsize

    def wants(self, params: SamplingParams) -> bool:
        return params.options["structured_outputs"] is not None

    def take(self, sample: SampleInput) -> None:
        self._sample = sample
        if not len(sample.mask_slots):
            self._rows = {}
            return
        keys = zip(sample.mask_slots.tolist(), sample.mask_positions.tolist(), strict=True)
        self._rows = {key: row for row, key in enumerate(keys)}

    def _rows_of(self, lines: Lines) -> np.ndarray:
        """int64 [lines]: the mask of each line."""
        keys = zip(lines.slots.tolist(), lines.positions.tolist(), strict=True)
        return np.array([self._rows.get(key, _NO_MASK) for key in keys], np.int64)

    def masks(self, lines: Lines) -> tuple[np.ndarray | None, np.ndarray | None]:
        return (self._sample.masks, self._rows_of(lines)) if self._rows else (None, None)

    def apply(self, scores: Tensor, lines: Lines) -> None:
        rows = self._rows_of(lines)
        masked = np.flatnonzero(rows != _NO_MASK)
        if masked.size:
            self._exclude(scores, lines.at[masked], self._sample.masks, rows[masked])

    def needed(self, lines: Lines) -> bool:
        return bool(self._rows)

    def send(self, lines: Lines) -> None:
        masks = np.full(len(self._mask_of_line), _NO_MASK, np.int32)
        masks[lines.at] = self._rows_of(lines)
        self._mask_of_line.copy_(to_device(masks, self.space.device))
        count = len(self._sample.masks)
        self._masks.tensor[:count].copy_(to_device(self._sample.masks, self.space.device))

    def launch(self, scores: Tensor, lines: GpuLines) -> Tensor:
        programs, masks = (len(scores), -(-self.space.vocab_size // _TILE)), self._masks.tensor
        _exclude[programs](
            scores, self._mask_of_line, masks,
            scores.stride(0), masks.shape[1], scores.shape[1], TILE=_TILE, num_warps=4,
        )  # fmt: skip
        return scores


@jit
def _exclude(scores, mask_of_line, masks, stride, words, vocab, TILE: tl.constexpr):
    """Program (line, tile of its tokens)."""
    line = tl.program_id(0).to(tl.int64)
    mask = tl.load(mask_of_line + line).to(tl.int64)
    if mask >= 0:
        token = tl.program_id(1) * TILE + tl.arange(0, TILE)
        known = token < vocab
        word = tl.load(masks + mask * words + token // 32, mask=known, other=0)
        tl.store(
            scores + line * stride + token, float("-inf"), mask=known & (((word >> (token % 32)) & 1) == 0)
        )
