"""`logit_bias`: a number added to the scores of some tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.sampling.lines import GpuLines, Lines
from server.sampling.stage import SlotSpace, Stage
from server.scheduling.params import SamplingParams
from server.scheduling.step import SlotStart


class LogitBias(Stage):
    """As OpenAI has it; goes before everything else, as transformers' sequence bias does."""

    options = ("logit_bias",)
    in_graph = True
    bytes_per_token = torch.float32.itemsize

    def __init__(self, space: SlotSpace) -> None:
        super().__init__(space)
        self._is_on = self.values(1)
        self.bias = self.table(torch.float32)

    def wants(self, params: SamplingParams) -> bool:
        return bool(params.options["logit_bias"])

    def assign(self, start: SlotStart) -> None:
        bias: dict[int, float] = start.params.options["logit_bias"]
        self._is_on.set(start.slot, 1)
        line = self.bias.tensor[start.slot]
        line.zero_()
        line[self.on_device(np.array(list(bias), np.int64))] = self.on_device(
            np.array(list(bias.values()), np.float32)
        )

    def apply(self, scores: Tensor, lines: Lines) -> None:
        scores.index_add_(0, self.on_device(lines.at), self.bias.tensor[self.on_device(lines.slots)])

    def launch(self, scores: Tensor, lines: GpuLines) -> Tensor:
        from server.sampling.triton.penalties import add_bias

        target = lines.float_scores(scores)
        add_bias(scores, lines.slots, self._is_on.on_device[0], self.bias.tensor, target)
        return target
