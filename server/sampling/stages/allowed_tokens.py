"""`allowed_token_ids`: only these tokens are chosen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.device.triton_support import jit, tl
from server.sampling.lines import GpuLines, Lines
from server.sampling.stage import EXCLUDED, SlotSpace, Stage
from server.scheduling.params import SamplingParams
from server.scheduling.step import SlotStart

_TILE = 4096


class AllowedTokens(Stage):
    """As vLLM has it."""

    options = ("allowed_token_ids",)
    only_masks = True
    in_graph = True
    bytes_per_token = torch.bool.itemsize

    def __init__(self, space: SlotSpace) -> None:
        super().__init__(space)
        self._is_on = self.values(1, whole=True)
        self.allowed = self.table(torch.bool)
        self._last: tuple[SamplingParams, Tensor] | None = None
        """Of the last request: its beams, or samples, take their slots one after the other."""

    def wants(self, params: SamplingParams) -> bool:
        return params.options["allowed_token_ids"] is not None

    def assign(self, start: SlotStart) -> None:
        self._is_on.set(start.slot, 1)
        if self._last is None or self._last[0] is not start.params:
            tokens = np.array(start.params.options["allowed_token_ids"], np.int64)
            self._last = start.params, self.on_device(tokens)
        line = self.allowed.tensor[start.slot]
        line.zero_()
        line[self._last[1]] = True

    def apply(self, scores: Tensor, lines: Lines) -> None:
        at = self.on_device(lines.at)
        scores[at] = scores[at].masked_fill(~self.allowed.tensor[self.on_device(lines.slots)], EXCLUDED)

    def launch(self, scores: Tensor, lines: GpuLines) -> Tensor:
        count, vocab = scores.shape
        _exclude_others[(count, -(-vocab // _TILE))](
            scores, lines.slots, self._is_on.on_device, self.allowed.tensor.view(torch.uint8),
            scores.stride(0), vocab, TILE=_TILE, num_warps=8,
        )  # fmt: skip
        return scores


@jit
def _exclude_others(scores, slots, is_on, allowed, stride, vocab, TILE: tl.constexpr):
    """Program (line, tile of the vocabulary)."""
    line = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + line).to(tl.int64)
    if tl.load(is_on + slot) > 0:
        token = tl.program_id(1) * TILE + tl.arange(0, TILE)
        inside = token < vocab
        others = tl.load(allowed + slot * vocab + token, mask=inside, other=1) == 0
        tl.store(scores + line * stride + token, float("-inf"), mask=inside & others)
