"""`typical_p`: only tokens about as surprising as is to be expected are drawn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.sampling.lines import Lines
from server.sampling.stage import EXCLUDED, SlotSpace, Stage, least_kept
from server.scheduling.params import SamplingParams
from server.scheduling.step import SlotStart


class Typical(Stage):
    """Locally typical sampling (Meister et al., 2022), by sorting: what is typical is not the greatest."""

    options = ("typical_p",)
    is_filter = True
    only_masks = True

    def __init__(self, space: SlotSpace) -> None:
        super().__init__(space)
        self._mass = self.values(1)
        self._least = np.ones(space.num_slots, np.int64)

    def wants(self, params: SamplingParams) -> bool:
        return bool(params.options["typical_p"] < 1.0)

    def assign(self, start: SlotStart) -> None:
        self._mass.set(start.slot, start.params.options["typical_p"])
        self._least[start.slot] = least_kept(start.params)

    def apply(self, scores: Tensor, lines: Lines) -> None:
        at = self.on_device(lines.at)
        chosen = scores[at]
        logs = chosen.log_softmax(dim=-1)
        entropy = -sum_rows(logs * logs.exp())
        surprise, order = torch.sort((-logs - entropy).abs(), dim=-1)
        mass = chosen.gather(1, order).softmax(dim=-1).cumsum(dim=-1)
        last = (mass < self._mass.column(0, lines.slots)).sum(dim=1, keepdim=True)
        last = last.clamp(max=self.space.vocab_size - 1)
        remove = surprise > surprise.gather(1, last)
        least = np.minimum(self._least[lines.slots], self.space.vocab_size)
        columns = torch.arange(self.space.vocab_size, device=scores.device)
        remove &= columns >= self.on_device(least).unsqueeze(1)
        scores[at] = chosen.masked_fill(torch.zeros_like(remove).scatter(1, order, remove), EXCLUDED)


def sum_rows(values: Tensor) -> Tensor:
    """Sums over the vocabulary, without NaNs; on a CPU a row has the same bits alone and among others.

    torch splits one long sum over its threads; where there are several, each thread takes whole ones.

    Args:
        values: [rows, vocab].

    Returns:
        [rows, 1].
    """
    rows = len(values)
    return (values.expand(2, -1) if rows == 1 else values).nansum(dim=-1, keepdim=True)[:rows]
