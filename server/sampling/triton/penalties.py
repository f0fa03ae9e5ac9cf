"""Bias and penalties of a whole batch, each in one look at the scores."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, uint8
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options

_TILE = 4096


@triton.jit
def _add_bias(
    logits, slots, is_biased, bias, scores, stride, vocab, TILE: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Program (line, tile of the vocabulary)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + line).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = i < vocab
    score = tl.load(logits + line * stride + i, mask=inside).to(tl.float32)
    columns = tl.where(tl.load(is_biased + slot) > 0.0, vocab, 0)
    score += tl.load(bias + slot * vocab + i, mask=i < columns, other=0.0)
    tl.store(scores + line * vocab + i, score, mask=inside)


@triton.jit
def _penalise(
    logits, slots, penalties, seen, counts, scores, stride, vocab, num_slots,
    TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line, tile of the vocabulary)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + line).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = i < vocab
    score = tl.load(logits + line * stride + i, mask=inside).to(tl.float32)
    repetition = tl.load(penalties + slot)
    if repetition > 0.0:
        repeated = tl.where(score < 0.0, score * repetition, score / repetition)
        score = tl.where(tl.load(seen + slot * vocab + i, mask=inside, other=0) != 0, repeated, score)
        count = tl.load(counts + slot * vocab + i, mask=inside, other=0.0)
        score -= count * tl.load(penalties + num_slots + slot)
        score -= tl.where(count > 0.0, tl.load(penalties + 2 * num_slots + slot), 0.0)
    tl.store(scores + line * vocab + i, score, mask=inside)


@triton.jit
def _count_tokens(tokens, slots, repetition, seen, counts, vocab, PDL: tl.constexpr):
    """Program (line)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0)
    slot, token = tl.load(slots + line), tl.load(tokens + line)
    kept = (token >= 0) & (tl.load(repetition + slot) > 0.0)
    at = slot.to(tl.int64) * vocab + tl.maximum(token, 0)
    tl.store(seen + at, 1, mask=kept)
    tl.store(counts + at, tl.load(counts + at, mask=kept, other=0.0) + 1.0, mask=kept)


def add_bias(logits: Tensor, slots: Tensor, is_biased: Tensor, bias: Tensor, scores: Tensor) -> None:
    """Write scores with biases added.

    Args:
        logits: [lines, vocab].
        slots: int32 [lines].
        is_biased: float32 [slots], 0 for those that are not.
        bias: float32 [slots, vocab], contiguous.
        scores: float32 [lines, vocab], contiguous, overwritten; may be `logits`.
    """
    lines, vocab = logits.shape
    _add_bias[(lines, triton.cdiv(vocab, _TILE))](
        logits, slots, is_biased, bias, scores, logits.stride(0), vocab,
        TILE=_TILE, num_warps=8, **launch_options(logits.device),
    )  # fmt: skip


def penalise(
    logits: Tensor, slots: Tensor, penalties: Tensor, seen: Tensor, counts: Tensor, scores: Tensor
) -> None:
    """Write scores with penalties applied.

    Args:
        logits: [lines, vocab].
        slots: int32 [lines].
        penalties: float32 [3, slots], contiguous: repetition penalty, 0 for a slot without penalties;
            frequency and presence penalties.
        seen: bool [slots, vocab], contiguous: tokens of the prompt or the answer.
        counts: float32 [slots, vocab], contiguous: how often the answer holds each.
        scores: float32 [lines, vocab], contiguous, overwritten; may be `logits`.
    """
    lines, vocab = logits.shape
    _penalise[(lines, triton.cdiv(vocab, _TILE))](
        logits, slots, penalties, seen.view(uint8), counts, scores, logits.stride(0), vocab,
        penalties.shape[1], TILE=_TILE, num_warps=8, **launch_options(logits.device),
    )  # fmt: skip


def count_tokens(tokens: Tensor, slots: Tensor, repetition: Tensor, seen: Tensor, counts: Tensor) -> None:
    """Note the tokens that were chosen.

    Args:
        tokens: int32 [lines], negative where none is.
        slots: int32 [lines], none of them twice but that of padding.
        repetition: float32 [slots], 0 for those whose tokens are not counted.
        seen, counts: as for `penalise`; changed.
    """
    _count_tokens[(len(tokens),)](
        tokens, slots, repetition, seen.view(uint8), counts, counts.shape[1],
        num_warps=1, **launch_options(tokens.device),
    )  # fmt: skip
