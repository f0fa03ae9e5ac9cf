"""Changes to the scores before a token is chosen, each for all rows that ask for it at once.

Meanings and order are those of transformers' logits processors; presence and frequency penalties
are OpenAI's and follow the repetition penalty. For beams the scores are log probabilities, for
other rows logits, as in transformers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.continuous_batching.decoding.rows import NO_TOKEN, RowTable
from server.continuous_batching.decoding.verification import DraftLines

EXCLUDED = float("-inf")


def apply_processors(
    scores: Tensor,
    table: RowTable,
    rows: np.ndarray,
    generated: np.ndarray,
    drafts: DraftLines | None = None,
) -> None:
    """Bias, penalties and minimum length, in place.

    Args:
        scores: float32 [rows, vocab].
        table: the rows' options.
        rows: table row of each score row.
        generated: tokens each row has generated so far, or is assumed to have.
        drafts: score rows that follow a guess.
    """
    biased = np.flatnonzero(table.biased[rows])
    if biased.size:
        scores.index_add_(0, table.on_device(biased), table.bias[table.on_device(rows[biased])])
    penalised = np.flatnonzero(table.penalised[rows])
    if penalised.size:
        lines = table.on_device(penalised)
        ahead = None if drafts is None else _within(penalised, *drafts.assumed())
        scores[lines] = _penalise(scores[lines], table, rows[penalised], ahead)
    hold_eos(scores, table, rows, generated)


def hold_eos(scores: Tensor, table: RowTable, rows: np.ndarray, generated: np.ndarray) -> None:
    """Let no answer end before its minimum length, in place; as `apply_processors` has it."""
    short = np.flatnonzero(generated < table.integers["min_new_tokens"][rows])
    if short.size:
        _suppress_eos(scores, table, short, rows[short])


def _within(chosen: np.ndarray, lines: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of `lines` that are among `chosen` (ascending), as indices in it, with their tokens."""
    present = np.isin(lines, chosen)
    return np.searchsorted(chosen, lines[present]), tokens[present]


def _penalise(
    scores: Tensor, table: RowTable, rows: np.ndarray, ahead: tuple[np.ndarray, np.ndarray] | None
) -> Tensor:
    """`ahead`: (lines of `scores`, tokens) that are assumed to be part of the answer already."""
    index = table.on_device(rows)
    seen, counts = table.seen[index], table.counts[index]
    if ahead is not None:
        places = (table.on_device(ahead[0]), table.on_device(ahead[1]))
        seen[places] = True
        counts.index_put_(places, torch.ones(1, device=table.device), accumulate=True)
    repetition = table.column(table.floats["repetition_penalty"], rows)
    repeated = torch.where(scores < 0, scores * repetition, scores / repetition)
    scores = torch.where(seen, repeated, scores)
    scores = scores - counts * table.column(table.floats["frequency_penalty"], rows)
    return scores - (counts > 0) * table.column(table.floats["presence_penalty"], rows)


def _suppress_eos(scores: Tensor, table: RowTable, index: np.ndarray, rows: np.ndarray) -> None:
    ends = table.eos[rows]
    given = ends != NO_TOKEN
    lines, columns = np.repeat(index, given.sum(axis=1)), ends[given]
    scores[table.on_device(lines), table.on_device(columns)] = EXCLUDED


def apply_filters(scores: Tensor, table: RowTable, rows: np.ndarray) -> Tensor:
    """Temperature, top-k, top-p, min-p and typical-p: what may not be sampled becomes -inf.

    Args:
        scores: float32 [rows, vocab], of sampling rows only.

    Returns:
        Filtered scores of the same shape.
    """
    scores = scores / table.column(table.floats["temperature"], rows)
    chosen = np.flatnonzero(table.filtered[rows])
    if not chosen.size:
        return scores
    rows = rows[chosen]
    lines = table.on_device(chosen)
    part = scores[lines]
    # beam search must keep a way on beside every end of sequence, as in transformers
    least = np.where(table.beams[rows], table.eos_count[rows] + 1, 1)
    keep = np.minimum(least, scores.shape[1])
    for applies, keep_tokens in (
        (table.integers["top_k"][rows] > 0, _top_k),
        (table.floats["top_p"][rows] < 1.0, _top_p),
        (table.floats["min_p"][rows] > 0.0, _min_p),
        (table.floats["typical_p"][rows] < 1.0, _typical_p),
    ):
        some = np.flatnonzero(applies)
        if some.size:
            index = table.on_device(some)
            part[index] = keep_tokens(part[index], table, rows[some], keep[some])
    scores[lines] = part
    return scores


def _column(table: RowTable, values: np.ndarray) -> Tensor:
    return table.on_device(values).unsqueeze(1)


def _top_k(scores: Tensor, table: RowTable, rows: np.ndarray, keep: np.ndarray) -> Tensor:
    k = np.maximum(table.integers["top_k"][rows], keep).clip(max=scores.shape[1])
    best = torch.topk(scores, int(k.max()), dim=-1).values
    worst = best.gather(1, _column(table, k - 1))
    return scores.masked_fill(scores < worst, EXCLUDED)


def _top_p(scores: Tensor, table: RowTable, rows: np.ndarray, keep: np.ndarray) -> Tensor:
    """Nucleus sampling (Holtzman et al., 2020)."""
    ordered, order = torch.sort(scores, dim=-1)
    below = ordered.softmax(dim=-1).cumsum(dim=-1)
    remove = below <= table.column(1.0 - table.floats["top_p"], rows)
    remove &= torch.arange(scores.shape[1], device=scores.device) < scores.shape[1] - _column(table, keep)
    return scores.masked_fill(torch.zeros_like(remove).scatter(1, order, remove), EXCLUDED)


def _min_p(scores: Tensor, table: RowTable, rows: np.ndarray, keep: np.ndarray) -> Tensor:
    """Relative to the likeliest token (Nguyen et al., 2024)."""
    probabilities = scores.softmax(dim=-1)
    best = torch.topk(probabilities, int(keep.max()), dim=-1).values
    remove = probabilities < table.column(table.floats["min_p"], rows) * best[:, :1]
    remove &= probabilities < best.gather(1, _column(table, keep - 1))
    return scores.masked_fill(remove, EXCLUDED)


def _typical_p(scores: Tensor, table: RowTable, rows: np.ndarray, keep: np.ndarray) -> Tensor:
    """Locally typical sampling (Meister et al., 2022)."""
    logs = scores.log_softmax(dim=-1)
    entropy = -(logs * logs.exp()).nansum(dim=-1, keepdim=True)
    surprise, order = torch.sort((-logs - entropy).abs(), dim=-1)
    mass = scores.gather(1, order).softmax(dim=-1).cumsum(dim=-1)
    last = (mass < table.column(table.floats["typical_p"], rows)).sum(dim=1, keepdim=True)
    last = last.clamp(max=scores.shape[1] - 1)
    remove = surprise > surprise.gather(1, last)
    remove &= torch.arange(scores.shape[1], device=scores.device) >= _column(table, keep)
    return scores.masked_fill(torch.zeros_like(remove).scatter(1, order, remove), EXCLUDED)
