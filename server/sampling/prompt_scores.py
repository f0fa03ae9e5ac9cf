"""Log probabilities of prompts, computed piece by piece: each token has a line over the vocabulary."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.device.transfer import to_device, to_host
from server.sampling.token_table import TokenTable
from server.scheduling.step import PromptReports, StepInput

_PIECE = 1 << 22
"""Scores that are in float32 at once."""


class PromptScores:
    """Log probabilities of the tokens behind those that a step scores, on their way to the host.

    Args:
        logits: [tokens, vocab], unprocessed, in the order of ``step.scored()``.
        step: what was computed.
        tokens: those of each slot.
    """

    def __init__(self, logits: Tensor, step: StepInput, tokens: TokenTable) -> None:
        chunks, positions = step.scored()
        table = tokens.tokens
        places = step.chunk_slots[chunks].astype(np.int64) * table.shape[1] + positions + 1
        following = table.view(-1).index_select(0, to_device(places, table.device)).long()
        most = min(max(int(step.scored_tops.max()), 1), logits.shape[1])
        size = max(1, _PIECE // logits.shape[1])
        pieces = [
            _score(piece, chosen, most)
            for piece, chosen in zip(
                torch.split(logits, size), torch.split(following.to(logits.device), size), strict=True
            )
        ]
        self._sent = [to_host(torch.cat(parts)) for parts in zip(*pieces, strict=True)]

    def read(self) -> PromptReports:
        """All of them, once they are there."""
        return PromptReports(*(part.numpy() for part in self._sent))


def _score(logits: Tensor, chosen: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(log probability of each line's chosen token, its rank, ids and log probabilities of the likeliest)."""
    logs = torch.log_softmax(logits.float(), dim=-1)
    own = logs.gather(1, chosen.unsqueeze(1))
    best = torch.topk(logs, most, dim=-1)
    return own.squeeze(1), (logs > own).sum(dim=1) + 1, best.indices, best.values
