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
    logits, slots, penalties, seen, counts, scores, depths, positions, table,
    stride, vocab, num_slots, length,
    TILE: tl.constexpr, DRAFTED: tl.constexpr, PDL: tl.constexpr,
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
        known = tl.load(seen + slot * vocab + i, mask=inside, other=0) != 0
        count = tl.load(counts + slot * vocab + i, mask=inside, other=0.0)
        if DRAFTED:  # the tokens that the line follows and that nobody has counted yet
            newest = table + slot * length + tl.load(positions + line)
            for back in range(tl.load(depths + line)):
                drafted = i == tl.load(newest - back)
                known |= drafted
                count += tl.where(drafted, 1.0, 0.0)
        score = tl.where(known, repeated, score)
        score -= count * tl.load(penalties + num_slots + slot)
        score -= tl.where(count > 0.0, tl.load(penalties + 2 * num_slots + slot), 0.0)
    tl.store(scores + line * vocab + i, score, mask=inside)


@triton.jit
def _count(token, slot, wanted, seen, counts, vocab):
    kept = (token >= 0) & wanted
    at = slot.to(tl.int64) * vocab + tl.maximum(token, 0)
    tl.store(seen + at, 1, mask=kept)
    tl.store(counts + at, tl.load(counts + at, mask=kept, other=0.0) + 1.0, mask=kept)


@triton.jit
def _count_tokens(
    tokens, slots, repetition, seen, counts, depths, firsts, accepted, vocab,
    DRAFTED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (line): the one of a sequence counts what is right of its draft, too, one after the other."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    line = tl.program_id(0)
    slot, token = tl.load(slots + line), tl.load(tokens + line)
    wanted = tl.load(repetition + slot) > 0.0
    if DRAFTED:
        wanted &= tl.load(depths + line) == 0
    _count(token, slot, wanted, seen, counts, vocab)
    if DRAFTED:
        first = tl.load(firsts + line)
        for i in range(tl.load(accepted + line)):
            tl.debug_barrier()  # the same token may come again
            _count(tl.load(tokens + first + i), slot, wanted, seen, counts, vocab)


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
    logits: Tensor,
    slots: Tensor,
    penalties: Tensor,
    seen: Tensor,
    counts: Tensor,
    scores: Tensor,
    drafts: tuple[Tensor, Tensor, Tensor] | None = None,
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
        drafts: (how many drafted tokens each line follows; place of the last one in its sequence; tokens of
            each slot), int32 [lines], [lines] and [slots, length]; None: no line follows any.
    """
    lines, vocab = logits.shape
    depths, positions, table = drafts or (slots, slots, slots)
    _penalise[(lines, triton.cdiv(vocab, _TILE))](
        logits, slots, penalties, seen.view(uint8), counts, scores, depths, positions, table,
        logits.stride(0), vocab, penalties.shape[1], table.stride(0),
        TILE=_TILE, DRAFTED=drafts is not None, num_warps=8, **launch_options(logits.device),
    )  # fmt: skip


def count_tokens(
    tokens: Tensor,
    slots: Tensor,
    repetition: Tensor,
    seen: Tensor,
    counts: Tensor,
    drafts: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Note the tokens that were chosen.

    Args:
        tokens: int32 [lines], negative where none is.
        slots: int32 [lines], none of them twice but that of padding, and those of drafts.
        repetition: float32 [slots], 0 for those whose tokens are not counted.
        seen, counts: as for `penalise`; changed.
        drafts: int32 [lines] each: how many drafted tokens a line follows; of a line with a draft, the line
            of the first drafted token, and how many are right. None: there are none.
    """
    depths, firsts, accepted = drafts or (slots, slots, slots)
    _count_tokens[(len(tokens),)](
        tokens, slots, repetition, seen.view(uint8), counts, depths, firsts, accepted, counts.shape[1],
        DRAFTED=drafts is not None, num_warps=1, **launch_options(tokens.device),
    )  # fmt: skip
