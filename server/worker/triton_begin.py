"""What precedes a replayed step of decodes: one kernel, which reads the step's inputs in pinned memory."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options, next_power_of_two
from server.layers.weights import EmbeddingRows

_TILE = 128
_SECTIONS_TILE = 8


@triton.jit(do_not_specialize=["size", "news", "room"])
def _begin_decodes(
    sent, inputs, known, tables, embedding, embedded, scale, size, news, room, section, length,
    HIDDEN: tl.constexpr, HIDDEN_TILE: tl.constexpr,
    SECTIONS: tl.constexpr, SECTIONS_TILE: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program: a tile of decodes and of news, as long as there are any, and a row of the embedding.

    Loads of the host's memory bypass the GPU's caches, and do not wait for the kernel in front.
    """
    if PDL:
        gdc_launch_dependents()
    i, s = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, SECTIONS_TILE)
    decode, new = i < size, i < news
    place, mask = s[:, None] * section + i[None, :], (s < SECTIONS)[:, None] & decode[None, :]
    numbers = tl.load(sent + place, mask=mask, other=0, cache_modifier=".cv")
    row = tl.load(sent + i, mask=decode, other=0, cache_modifier=".cv").to(tl.int64)
    position = tl.load(sent + section + i, mask=decode, other=0, cache_modifier=".cv")
    changed = sent + SECTIONS * section
    at = tl.load(changed + i, mask=new, other=0, cache_modifier=".cv")
    block = tl.load(changed + room + i, mask=new, other=0, cache_modifier=".cv")
    line, d = tl.program_id(0).to(tl.int64), tl.arange(0, HIDDEN_TILE)
    own_row, own_position = line, 0
    if HIDDEN > 0 and line < size:
        own_row = tl.load(sent + line, cache_modifier=".cv").to(tl.int64)
        own_position = tl.load(sent + section + line, cache_modifier=".cv")
    if PDL:
        gdc_wait()
    if HIDDEN > 0 and line < size:
        own = tl.load(known + own_row * length + tl.maximum(own_position, 0)).to(tl.int64)
        x = tl.load(embedding + own * HIDDEN + d, mask=d < HIDDEN).to(tl.float32) * scale
        tl.store(embedded + line * HIDDEN + d, x.to(embedded.dtype.element_ty), mask=d < HIDDEN)
    tl.store(tables + at, block, mask=new)
    tl.store(inputs + place, numbers, mask=mask)
    token = tl.load(known + row * length + tl.maximum(position, 0), mask=decode)  # that of padding is -1
    tl.store(inputs + SECTIONS * section + i, token, mask=decode)


def begin_decodes(
    sent: Tensor,
    inputs: Tensor,
    known: Tensor,
    tables: Tensor,
    size: int,
    news: int,
    room: int,
    embedding: EmbeddingRows | None = None,
    embedded: Tensor | None = None,
) -> None:
    """Copy a step's inputs to the device, update the block tables, gather tokens and look up their rows.

    Args:
        sent: int32, pinned memory of the host: all sections of `inputs` but the last, the first two of which
            are the row of each decode and the place of its token, -1 for padding; behind them `news` places
            in the flat `tables`, all different; `room` elements behind the first of these the new values.
        inputs: int32 [sections, section], contiguous; the first `size` elements of each section are
            overwritten, those of the last with ``known[rows, places]``.
        known: int32 [rows, length], contiguous: tokens of each row.
        tables: int32, contiguous.
        size: number of decodes.
        news: how many entries of the tables change.
        embedding: what is looked up; None: nothing.
        embedded: [lines, hidden], contiguous, gets the rows of the `size` tokens; with `embedding`.
    """
    sections, section = inputs.shape
    programs, hidden, weight, scale = triton.cdiv(max(size, news), _TILE), 0, None, 1.0
    if embedding is not None:
        weight, scale = embedding
        programs, hidden = max(size, programs), weight.shape[1]
    tile = next_power_of_two(max(hidden, 1))
    _begin_decodes[(programs,)](
        sent, inputs, known, tables, weight, embedded, scale, size, news, room, section, known.stride(0),
        HIDDEN=hidden, HIDDEN_TILE=tile, SECTIONS=sections - 1, SECTIONS_TILE=_SECTIONS_TILE, TILE=_TILE,
        # each warp of a program reads its line's row and place for itself: as few as have room for `tile`
        num_warps=min(max(tile // 2_048, 1), 4), **launch_options(inputs.device),
    )  # fmt: skip
