"""Bias and penalties of a whole batch in one look at the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.continuous_batching.kernels.triton_support import launch_options

_TILE = 4096


@dataclass(frozen=True, slots=True)
class History:
    """Tokens that penalties are for.

    Attributes:
        seen: bool [rows, vocab], tokens of the prompt or the answer.
        counts: float32 [rows, vocab], how often the answer holds each.
    """

    seen: Tensor
    counts: Tensor


@triton.jit
def _penalise(
    logits, rows, penalties, bias, seen, counts, scores, stride, vocab, num_rows,
    BIASED: tl.constexpr, PENALISED: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line, tile of the vocabulary)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + line).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = i < vocab
    score = tl.load(logits + line * stride + i, mask=inside).to(tl.float32)
    if BIASED:
        columns = tl.where(tl.load(penalties + row) > 0.0, vocab, 0)
        score += tl.load(bias + row * vocab + i, mask=i < columns, other=0.0)
    if PENALISED:
        repetition = tl.load(penalties + num_rows + row)
        if repetition > 0.0:  # 0 stands for a row without penalties
            repeated = tl.where(score < 0.0, score * repetition, score / repetition)
            score = tl.where(tl.load(seen + row * vocab + i, mask=inside, other=0) != 0, repeated, score)
            count = tl.load(counts + row * vocab + i, mask=inside, other=0.0)
            score -= count * tl.load(penalties + 2 * num_rows + row)
            score -= tl.where(count > 0.0, tl.load(penalties + 3 * num_rows + row), 0.0)
    tl.store(scores + line * vocab + i, score, mask=inside)


def penalise(
    logits: Tensor,
    rows: Tensor,
    options: Tensor,
    bias: Tensor | None,
    history: History | None,
    room: Tensor,
) -> Tensor:
    """Scores float32 [lines, vocab] of logits with biases and penalties applied.

    Args:
        logits: [lines, vocab].
        rows: int32 [lines], table row of each line.
        options: float32 [4, rows], contiguous: whether a row is biased; its repetition penalty, 0 for a
            row without penalties; its frequency and presence penalties.
        bias: float32 [rows, vocab], or None where no line is biased.
        history: tokens so far, or None where no line is penalised.
        room: float32, as many as there are logits; the scores are written there.
    """
    lines, vocab = logits.shape
    scores = room.view(-1)[: lines * vocab].view(lines, vocab)
    seen, counts = (scores, scores) if history is None else (history.seen.view(torch.uint8), history.counts)
    _penalise[(lines, triton.cdiv(vocab, _TILE))](
        logits, rows, options, scores if bias is None else bias, seen, counts, scores,
        logits.stride(0), vocab, options.shape[1],
        BIASED=bias is not None, PENALISED=history is not None, TILE=_TILE, num_warps=8,
        **launch_options(logits.device),
    )  # fmt: skip
    return scores
