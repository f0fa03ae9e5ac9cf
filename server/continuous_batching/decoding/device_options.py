"""What requests' options make of the scores, on a device that keeps options by row: by kernels of our own,
each over all rows of the step. The meanings are those of `processors`."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from server.continuous_batching.decoding.processors import EXCLUDED, apply_filters, hold_eos
from server.continuous_batching.decoding.rows import RowTable


def apply_options(
    logits: Tensor, table: RowTable, rows: np.ndarray, placed: Tensor, generated: np.ndarray
) -> Tensor:
    """Bias, penalties, minimum length and filters: everything but the temperature.

    Args:
        logits: [lines, vocab], as the model gave them; overwritten.
        table: the rows' options.
        rows: table row of each line; no beams.
        placed: the same, int32 on the device.
        generated: tokens that each line's answer has.

    Returns:
        Scores [lines, vocab], float32 where anything is biased or penalised; -inf for what may not be drawn.
    """
    assert table.device_rows is not None
    biased, penalised = bool(table.biased[rows].any()), bool(table.penalised[rows].any())
    if biased or penalised:
        history = (table.seen, table.counts) if penalised else None
        logits = table.device_rows.penalise(logits, placed, table.bias if biased else None, history)
    hold_eos(logits, table, rows, generated)
    _exclude_filtered(logits, table, rows, placed)
    return logits


def _exclude_filtered(logits: Tensor, table: RowTable, rows: np.ndarray, placed: Tensor) -> None:
    """What `apply_filters` would exclude becomes -inf, in place; the rest stays as it is.

    Without sorting, but for locally typical sampling, whose order is not that of the scores.
    """
    assert table.device_rows is not None
    filtered = table.filtered[rows] & table.samples[rows]
    typical = filtered & (table.floats["typical_p"][rows] < 1.0)
    others = filtered & ~typical
    if others.any():
        top_k = bool((others & (table.integers["top_k"][rows] > 0)).any())
        top_p = bool((others & (table.floats["top_p"][rows] < 1.0)).any())
        table.device_rows.exclude(logits, placed, top_k=top_k, top_p=top_p)
    chosen = np.flatnonzero(typical)
    if chosen.size:
        lines = table.on_device(chosen)
        part = logits[lines]
        excluded = apply_filters(part.float(), table, rows[chosen]) == EXCLUDED
        logits[lines] = part.masked_fill_(excluded, EXCLUDED)
