"""Log probabilities to report beside the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from server.continuous_batching.transfer import to_device, to_host
from server.text.logprob import TokenLogprob


class StepLogprobs:
    """Log probabilities of the rows that want them, before any processor touched the logits.

    Args:
        logits: [rows, vocab], unprocessed.
        wanted: per row how many top tokens to report, -1 for none at all.
    """

    def __init__(self, logits: Tensor, wanted: np.ndarray) -> None:
        rows = np.flatnonzero(wanted >= 0)
        self._line = {int(row): line for line, row in enumerate(rows)}
        self._wanted = wanted
        self._lists: list[Any] | None = None
        if rows.size:
            self._rows = to_device(rows, logits.device)
            self._logs = torch.log_softmax(logits[self._rows].float(), dim=-1)
            best = torch.topk(self._logs, max(int(wanted.max()), 1), dim=-1)
            self._reports = [best.indices, best.values]

    def __bool__(self) -> bool:
        """Whether any row wants a report."""
        return bool(self._line)

    def send(self, tokens: Tensor) -> None:
        """Start to copy to the host what `of` tells of `tokens`, int64 [rows]; of no others then."""
        if self:
            chosen = self._logs.gather(1, tokens[self._rows].unsqueeze(1))
            self._reports = [to_host(report) for report in (*self._reports, chosen)]

    def of(self, row: int, token: int) -> TokenLogprob | None:
        """The report for `token` chosen in `row`, or None if the row wants none."""
        line = self._line.get(row)
        if line is None:
            return None
        if self._lists is None:
            self._lists = [report.tolist() for report in self._reports]
        ids, logs, *chosen = self._lists
        count = int(self._wanted[row])
        logprob = chosen[0][line][0] if chosen else float(self._logs[line, token])
        return TokenLogprob(token, logprob, list(zip(ids[line][:count], logs[line][:count], strict=True)))
