"""`top_k`, `top_p`, `min_p`: only the likeliest tokens are drawn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.sampling.lines import GpuLines, Lines
from server.sampling.stage import EXCLUDED, SlotSpace, Stage, least_kept
from server.scheduling.params import SamplingParams
from server.scheduling.step import SlotStart

_LEAST_TOP_P = 1e-30
"""Keeps the likeliest token only, as any lesser one does; float32 still knows it from 0."""


class Truncation(Stage):
    """The three together: a GPU finds the border of all of them without sorting, and the kernel that draws
    leaves out what lies beyond."""

    options = ("top_k", "top_p", "min_p")
    is_filter = True
    only_masks = True
    in_graph = True
    bytes_per_token = torch.float32.itemsize

    def __init__(self, space: SlotSpace) -> None:
        super().__init__(space)
        self._limits = self.values(4)  # temperature, then `options`; 0: off
        self._least = np.ones(space.num_slots, np.int64)
        self.listed = self.table(torch.float32, by_line=True)
        """Room for the scores that a GPU searches."""

    def wants(self, params: SamplingParams) -> bool:
        return any(_limits_of(params))

    def assign(self, start: SlotStart) -> None:
        params = start.params
        self._limits.set(start.slot, params.options["temperature"], *_limits_of(params))
        self._least[start.slot] = least_kept(params)

    def apply(self, scores: Tensor, lines: Lines) -> None:
        least = np.minimum(self._least[lines.slots], self.space.vocab_size)
        for index, keep in enumerate((self._top_k, self._top_p, self._min_p), start=1):
            some = np.flatnonzero(self._limits.host[index, lines.slots])
            if some.size:
                at = self.on_device(lines.at[some])
                scores[at] = keep(scores[at], lines.slots[some], least[some])

    def _top_k(self, scores: Tensor, slots: np.ndarray, least: np.ndarray) -> Tensor:
        k = np.maximum(self._limits.host[1, slots].astype(np.int64), least).clip(max=scores.shape[1])
        best = torch.topk(scores, int(k.max()), dim=-1).values
        return scores.masked_fill(scores < best.gather(1, self._column(k - 1)), EXCLUDED)

    def _top_p(self, scores: Tensor, slots: np.ndarray, least: np.ndarray) -> Tensor:
        """Nucleus sampling (Holtzman et al., 2020)."""
        ordered, order = torch.sort(scores, dim=-1)
        below = ordered.softmax(dim=-1).cumsum(dim=-1)
        remove = below <= self._column((1.0 - self._limits.host[2, slots]).astype(np.float32))
        columns = torch.arange(scores.shape[1], device=scores.device)
        remove &= columns < self._column(scores.shape[1] - least)
        return scores.masked_fill(torch.zeros_like(remove).scatter(1, order, remove), EXCLUDED)

    def _min_p(self, scores: Tensor, slots: np.ndarray, least: np.ndarray) -> Tensor:
        """Relative to the likeliest token (Nguyen et al., 2024)."""
        probabilities = scores.softmax(dim=-1)
        best = torch.topk(probabilities, int(least.max()), dim=-1).values
        remove = probabilities < self._limits.column(3, slots) * best[:, :1]
        remove &= probabilities < best.gather(1, self._column(least - 1))
        return scores.masked_fill(remove, EXCLUDED)

    def _column(self, values: np.ndarray) -> Tensor:
        return self.on_device(values).unsqueeze(1)

    def launch(self, scores: Tensor, lines: GpuLines) -> Tensor:
        from server.sampling.triton.filters import find_bounds

        lines.bounds = find_bounds(scores, lines.slots, self._limits.on_device, self.listed.tensor)
        return scores


def _limits_of(params: SamplingParams) -> tuple[float, float, float]:
    """(top-k, top-p, min-p), 0 where a filter is off."""
    top_k, top_p, min_p = (params.options[name] for name in Truncation.options)
    return top_k, max(top_p, _LEAST_TOP_P) if top_p < 1.0 else 0.0, min_p
