"""Log probabilities to report beside the tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.text.logprob import TokenLogprob


class StepLogprobs:
    """Log probabilities of the rows that want them, before any processor touched the logits.

    Args:
        logits: float32 [rows, vocab], unprocessed.
        wanted: per row how many top tokens to report, -1 for none at all.
    """

    def __init__(self, logits: Tensor, wanted: np.ndarray) -> None:
        rows = np.flatnonzero(wanted >= 0)
        self._line = {int(row): line for line, row in enumerate(rows)}
        self._wanted = wanted
        if rows.size:
            self._logs = torch.log_softmax(logits[rows], dim=-1)
            best = torch.topk(self._logs, max(int(wanted.max()), 1), dim=-1)
            self._best_ids, self._best = best.indices.tolist(), best.values.tolist()

    def of(self, row: int, token: int) -> TokenLogprob | None:
        """The report for `token` chosen in `row`, or None if the row wants none."""
        line = self._line.get(row)
        if line is None:
            return None
        count = int(self._wanted[row])
        top = list(zip(self._best_ids[line][:count], self._best[line][:count], strict=True))
        return TokenLogprob(token, float(self._logs[line, token]), top)
