"""Log probabilities to report beside the tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.device.transfer import to_device, to_host
from server.scheduling.step import Reports


class StepLogprobs:
    """Log probabilities of the lines that want them, before any processor touched the logits.

    Args:
        logits: [lines, vocab], unprocessed.
        wanted: int [lines], how many of the likeliest tokens to report, -1 for none at all.
    """

    def __init__(self, logits: Tensor, wanted: np.ndarray) -> None:
        self._counts = wanted[wanted >= 0]
        self._sent: list[Tensor] = []
        if not self:
            return  # in nearly every step
        chosen = np.flatnonzero(wanted >= 0)
        self._place = np.full(len(wanted), -1, np.int64)
        self._place[chosen] = np.arange(chosen.size)
        self._lines = to_device(chosen, logits.device)
        self._logs = torch.log_softmax(logits[self._lines].float(), dim=-1)
        count = min(max(int(wanted.max()), 1), logits.shape[-1])
        self._best = torch.topk(self._logs, count, dim=-1)

    def __bool__(self) -> bool:
        """Whether any line wants a report."""
        return self._counts.size > 0

    def of(self, lines: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """float32 [n]: of `tokens` [n] on lines that want reports."""
        index = to_device(self._place[lines], self._logs.device)
        logprobs: np.ndarray = self._logs[index, to_device(tokens, index.device)].cpu().numpy()
        return logprobs

    def send(self, tokens: Tensor) -> None:
        """Start to copy to the host what `report` tells, if int64 [lines] `tokens` are chosen."""
        if self:
            chosen = self._logs.gather(1, tokens[self._lines].unsqueeze(1)).squeeze(1)
            self._sent = [to_host(part) for part in (self._best.indices, self._best.values, chosen)]

    def report(self, lines: np.ndarray) -> Reports | None:
        """What was sent, once it is there.

        Args:
            lines: int64 [sequences, k], the line of each token that was chosen.
        """
        if not self:
            return None
        ids, logprobs, chosen = (part.numpy() for part in self._sent)
        return Reports(self._place[lines], self._counts, chosen, ids, logprobs)
