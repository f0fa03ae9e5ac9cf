"""One token per row: the likeliest, or one drawn from the filtered distribution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.continuous_batching.decoding.processors import apply_filters
from server.continuous_batching.decoding.rows import RowTable
from server.random import uniform

FAILED = -1
"""Stands for the token of a row whose scores are not finite."""


def choose_tokens(scores: Tensor, table: RowTable, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The next token of each row.

    Args:
        scores: float32 [rows, vocab], processed.
        table: the rows' options.
        rows: table row of each score row.
        positions: index in its sequence of the token to be chosen.

    Returns:
        int64 [rows]; `FAILED` where nothing can be chosen.
    """
    best, tokens = scores.max(dim=-1)
    tokens = torch.where(torch.isfinite(best), tokens, FAILED)
    chosen = np.flatnonzero(table.samples[rows])
    if chosen.size:
        sampled = table.on_device(chosen)
        drawn = _draw(scores[sampled], table, rows[chosen], positions[chosen])
        tokens[sampled] = torch.where(tokens[sampled] == FAILED, FAILED, drawn)
    return tokens.cpu().numpy()


def _draw(scores: Tensor, table: RowTable, rows: np.ndarray, positions: np.ndarray) -> Tensor:
    """Inverse-CDF sampling with one uniform number a row; `FAILED` where scores or filters overflow."""
    probabilities = apply_filters(scores, table, rows).softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
    # (seed, answer, position) decide, so the batch a row happens to be in does not
    number = uniform(
        table.column(table.integers["seed"], rows),
        table.column(table.answer, rows),
        table.on_device(positions).unsqueeze(1),
    )
    # strictly above the target: a token of probability zero adds nothing and is never hit
    drawn = torch.searchsorted(cumulative, number * cumulative[:, -1:], right=True).squeeze(1)
    return torch.where(drawn < scores.shape[1], drawn, FAILED)  # in a sum that is not finite nothing is above
