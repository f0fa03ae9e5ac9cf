"""`repetition_penalty`, `frequency_penalty`, `presence_penalty`: tokens that were there score less."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.sampling.lines import GpuLines, Lines
from server.sampling.stage import SlotSpace, Stage
from server.scheduling.params import SamplingParams
from server.scheduling.step import SlotStart


class Penalties(Stage):
    """The repetition penalty is that of transformers (Keskar et al., 2019), prompt included; the others are
    OpenAI's, for the tokens of the answer, and follow it. One look at the scores serves all three."""

    options = ("repetition_penalty", "frequency_penalty", "presence_penalty")
    in_graph = True
    bytes_per_token = torch.float32.itemsize + torch.bool.itemsize

    def __init__(self, space: SlotSpace) -> None:
        super().__init__(space)
        self._penalties = self.values(3)  # in the order of `options`; a repetition penalty of 0: off
        self.seen = self.table(torch.bool)
        """Tokens of the prompt or the answer."""
        self.counts = self.table(torch.float32)
        """How often the answer holds each token."""

    def wants(self, params: SamplingParams) -> bool:
        repetition, frequency, presence = (params.options[name] for name in self.options)
        return bool(repetition != 1.0 or frequency or presence)

    def assign(self, start: SlotStart) -> None:
        self._penalties.set(start.slot, *(start.params.options[name] for name in self.options))
        self.seen.tensor[start.slot] = False
        self.seen.tensor[start.slot, self.on_device(start.tokens.astype(np.int64))] = True
        counts = np.bincount(start.tokens[start.prompt_length :], minlength=self.space.vocab_size)
        self.counts.tensor[start.slot] = self.on_device(counts.astype(np.float32))

    def copy(self, sources: np.ndarray, targets: np.ndarray) -> None:
        self.seen.copy(sources, targets)
        self.counts.copy(sources, targets)

    def record(self, slots: np.ndarray, tokens: np.ndarray) -> None:
        index, token = self.on_device(slots).long(), self.on_device(tokens).long()
        self.seen.tensor[index, token] = True
        one = torch.ones(1, device=self.space.device)
        self.counts.tensor.index_put_((index, token), one, accumulate=True)

    def apply(self, scores: Tensor, lines: Lines) -> None:
        index = self.on_device(lines.slots)
        seen, counts = self.seen.tensor[index], self.counts.tensor[index]
        which, tokens = lines.assumed()
        if which.size:
            places = (self.on_device(which), self.on_device(tokens))
            seen[places] = True
            counts.index_put_(places, torch.ones(1, device=scores.device), accumulate=True)
        repetition, frequency, presence = (self._penalties.column(i, lines.slots) for i in range(3))
        at = self.on_device(lines.at)
        score = scores[at]
        score = torch.where(seen, torch.where(score < 0, score * repetition, score / repetition), score)
        scores[at] = score - counts * frequency - (counts > 0) * presence

    def launch(self, scores: Tensor, lines: GpuLines) -> Tensor:
        from server.sampling.triton.penalties import penalise

        target, penalties = lines.float_scores(scores), self._penalties.on_device
        known = None
        if lines.drafts is not None:
            known = lines.drafts.depths, lines.positions, self.space.tokens.tokens
        penalise(scores, lines.slots, penalties, self.seen.tensor, self.counts.tensor, target, known)
        return target

    def note(self, tokens: Tensor, lines: GpuLines) -> None:
        from server.sampling.triton.penalties import count_tokens

        is_on = self._penalties.on_device[0]
        drafts = None
        if lines.drafts is not None and lines.accepted is not None:
            drafts = lines.drafts.depths, lines.drafts.firsts, lines.accepted
        count_tokens(tokens, lines.slots, is_on, self.seen.tensor, self.counts.tensor, drafts)
