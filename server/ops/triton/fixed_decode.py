"""Attention of decodes in pieces that depend on the context alone, however many sequences there are.

The kernel of `decode_kernel` cuts a context into as many pieces as the machine has programs to spare. Here
the pieces are always the same, and where sequences are many, a program attends to several of a context, one
after the other. Pieces are merged one by one in their order: by the program that has all of them, or by the
one that ends last.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import LOG2_E, launch_options, next_power_of_two
from server.layers.rotary import Rotary
from server.layers.spec import AttentionSpec
from server.ops.paged_attention import PagedBatch
from server.ops.triton.decode_attention import DecodeAttention
from server.ops.triton.decode_kernel import (
    add_sink,
    attend_tile,
    begin_with,
    blocks_of,
    load_tile,
)
from server.ops.triton.decode_tokens import angles_of, take_token

_PIECES = 32
"""Pieces of a context at most."""
_SMALLEST = 128
"""Tokens of a piece at least."""
_PROGRAMS = 1024
"""About as many keep a data-centre GPU busy."""
_TILE_ELEMENTS = 4096
"""Of the keys that a program reads at a time."""


@triton.jit
def fixed_piece(length, PIECES: tl.constexpr, SMALLEST: tl.constexpr):
    """(tokens of a piece, how many pieces there are) of a context of `length` tokens."""
    piece = tl.maximum(tl.cdiv(tl.cdiv(length, PIECES), SMALLEST), 1) * SMALLEST
    return piece, tl.maximum(tl.cdiv(length, piece), 1)


@triton.jit
def _merge(best, total, acc, scale, part):
    """(best, total, acc) of the pieces so far after one more, which weighs ``2 ** scale``."""
    peak = tl.maximum(best, scale)
    fade, weight = tl.exp2(best - peak), tl.exp2(scale - peak)
    return peak, total * fade + weight, acc * fade[:, None] + part * weight[:, None]


@triton.jit
def _keep(
    best, total, acc, all_best, all_total, all_acc, partial, scales, at, g, d, mask,
    HEAD_DIM: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """(best, total, acc) of all pieces after one that has ended. It is stored where programs share them."""
    part, scale = acc / total[:, None], best + tl.log2(total)
    if tl.num_programs(1) == 1:
        all_best, all_total, all_acc = _merge(all_best, all_total, all_acc, scale, part)
    else:
        tl.store(partial + at[:, None] * HEAD_DIM + d[None, :], part, mask=mask)
        tl.store(scales + at, scale, mask=g < GROUP)
    return all_best, all_total, all_acc


@triton.jit
def _merge_stored(partial, scales, line, live, mask, d, HEAD_DIM: tl.constexpr, ROOM: tl.constexpr):
    """The `live` pieces of heads `line`, merged: [heads, head_dim]."""
    best = tl.full([line.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([line.shape[0]], tl.float32)
    acc = tl.zeros([line.shape[0], d.shape[0]], tl.float32)
    for first in range(0, live, 4):
        for beside in tl.static_range(4):  # asked for together; what is not there weighs nothing
            there = first + beside < live
            at = line * ROOM + tl.minimum(first + beside, live - 1)
            # past the first-level cache, which knows nothing of other multiprocessors' stores
            scale = tl.load(scales + at, cache_modifier=".cg")
            part = tl.load(
                partial + at[:, None] * HEAD_DIM + d[None, :], mask=mask, other=0.0, cache_modifier=".cg"
            )
            best, total, acc = _merge(best, total, acc, tl.where(there, scale, float("-inf")), part)
    return acc / total[:, None]


@triton.jit
def decode_in_pieces(
    query, key, value, cos_table, sin_table, sinks, cache, rows, positions, tables,
    partial, scales, arrivals, output,
    query_stride, key_stride, value_stride, table_stride, block_stride, layer_offset, value_offset, scale,
    GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROTARY_DIM: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, TILE: tl.constexpr, PIECES: tl.constexpr, SMALLEST: tl.constexpr,
    ROOM: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (key head, every so manieth piece, sequence). ROOM: pieces that `partial` has room for.

    What is read before the wait is as in `decode_kernel.decode`.
    """
    TOKEN: tl.constexpr = KV_HEADS * HEAD_DIM
    if PDL:
        gdc_launch_dependents()
    kv_head, first_split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions + sequence)
    row = tl.load(rows + sequence).to(tl.int64)
    start = 0 if WINDOW == 0 else tl.maximum(position - WINDOW + 1, 0)
    piece, live = fixed_piece(position - start, PIECES, SMALLEST)
    d = tl.arange(0, DIM_TILE)
    table = tables + row * table_stride
    base = cache + layer_offset + kv_head * HEAD_DIM
    cos, sin = angles_of(cos_table, sin_table, position, d, ROTARY_DIM)
    n = start + first_split * piece + tl.arange(0, TILE)
    end = tl.minimum(start + (first_split + 1) * piece, position)
    valid, block = n < end, blocks_of(table, n, end, BLOCK_SIZE)
    k, v = load_tile(base, block, n, valid, d, block_stride, value_offset, BLOCK_SIZE, TOKEN, HEAD_DIM)
    if PDL:
        gdc_wait()
    if (position < 0) | (first_split >= live):
        return

    sequence = sequence.to(tl.int64)
    first = first_split == 0
    q, k_new, v_new = take_token(
        query + sequence * query_stride, key + sequence * key_stride, value + sequence * value_stride,
        cos, sin, base, table, kv_head, position, first, 1.0, 1.0, None, block_stride, value_offset,
        GROUP, GROUP_TILE, HEAD_DIM, DIM_TILE, BLOCK_SIZE, TOKEN, ROTARY_DIM,
    )  # fmt: skip

    g = tl.arange(0, GROUP_TILE)
    q_mask = (g < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    pair = sequence * KV_HEADS + kv_head
    target = output + (pair * GROUP + g)[:, None] * HEAD_DIM + d[None, :]
    line = pair * GROUP + tl.minimum(g, GROUP - 1)
    all_best = tl.full([GROUP_TILE], float("-inf"), tl.float32)
    all_total = tl.zeros([GROUP_TILE], tl.float32)
    all_acc = tl.zeros([GROUP_TILE, DIM_TILE], tl.float32)
    best, total, acc = begin_with(q, k_new, v_new, first, scale, SOFTCAP)
    best, total, acc = add_sink(sinks, kv_head, first, best, total, acc, GROUP, GROUP_TILE)
    best, total, acc = attend_tile(q, k, v, valid, best, total, acc, scale, SOFTCAP, PRECISION)

    # one loop over the tiles of all its pieces: what is read ahead does not stop where a piece ends
    programs = tl.num_programs(1)
    pieces, tiles = tl.cdiv(live - first_split, programs), piece // TILE
    last = first_split + (pieces - 1) * programs
    of_last = tl.cdiv(tl.minimum(piece, position - start - last * piece), TILE)
    for tile in range(1, (pieces - 1) * tiles + of_last):
        split = first_split + tile // tiles * programs
        begin = start + split * piece
        n = begin + tile % tiles * TILE + tl.arange(0, TILE)
        end = tl.minimum(begin + piece, position)
        valid, block = n < end, blocks_of(table, n, end, BLOCK_SIZE)
        k, v = load_tile(base, block, n, valid, d, block_stride, value_offset, BLOCK_SIZE, TOKEN, HEAD_DIM)
        if tile % tiles == 0:
            place = line * ROOM + split - programs
            all_best, all_total, all_acc = _keep(
                best, total, acc, all_best, all_total, all_acc, partial, scales, place, g, d, q_mask,
                HEAD_DIM, GROUP,
            )  # fmt: skip
            best = tl.full([GROUP_TILE], float("-inf"), tl.float32)
            total = tl.zeros([GROUP_TILE], tl.float32)
            acc = tl.zeros([GROUP_TILE, DIM_TILE], tl.float32)
        best, total, acc = attend_tile(q, k, v, valid, best, total, acc, scale, SOFTCAP, PRECISION)
    place = line * ROOM + last
    all_best, all_total, all_acc = _keep(
        best, total, acc, all_best, all_total, all_acc, partial, scales, place, g, d, q_mask, HEAD_DIM, GROUP
    )  # fmt: skip
    if programs == 1:
        merged = all_acc / all_total[:, None]
        tl.store(target, merged.to(output.dtype.element_ty), mask=q_mask)
    else:
        tl.debug_barrier()  # every thread has stored before one of them says so
        if tl.atomic_add(arrivals + pair, pieces, sem="acq_rel") == live - pieces:
            stored = _merge_stored(partial, scales, line, live, q_mask, d, HEAD_DIM, ROOM)
            tl.store(target, stored.to(output.dtype.element_ty), mask=q_mask)
            tl.store(arrivals + pair, 0)


class FixedDecodeAttention(DecodeAttention):
    """As `DecodeAttention`; what comes out for a sequence depends on nothing but the sequence."""

    def __call__(
        self,
        layer: int,
        spec: AttentionSpec,
        rotary: Rotary | None,
        batch: PagedBatch,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        sinks: Tensor | None = None,
    ) -> None:
        cache = self._cache
        cos, sin = (None, None) if rotary is None else (rotary.cos, rotary.sin)
        sequences, heads, head_dim = query.shape
        kv_heads, block_size = cache.shape[4], cache.shape[3]
        group, dim_tile = heads // kv_heads, next_power_of_two(head_dim)
        longest = batch.tables.shape[1] * block_size
        room = min(_PIECES, triton.cdiv(min(longest, spec.window or longest), _SMALLEST))
        programs = min(room, next_power_of_two(triton.cdiv(_PROGRAMS, sequences * kv_heads)))
        scales = torch.empty((sequences, heads, room), dtype=torch.float32, device=cache.device)
        partial = torch.empty((*scales.shape, head_dim), dtype=torch.float32, device=cache.device)
        decode_in_pieces[(kv_heads, programs, sequences)](
            query, key, value, cos, sin, sinks, cache,
            batch.rows, batch.positions, batch.tables, partial, scales, self._arrivals_of(batch), output,
            query.stride(0), key.stride(0), value.stride(0), batch.tables.stride(0), cache.stride(0),
            layer * cache.stride(1), cache.stride(2), spec.scale * LOG2_E,
            GROUP=group, GROUP_TILE=max(next_power_of_two(group), 16), KV_HEADS=kv_heads, HEAD_DIM=head_dim,
            DIM_TILE=dim_tile, BLOCK_SIZE=block_size, ROTARY_DIM=0 if cos is None else cos.shape[1],
            WINDOW=spec.window or 0, SOFTCAP=(spec.softcap or 0.0) * LOG2_E,
            TILE=_TILE_ELEMENTS // dim_tile, PIECES=_PIECES, SMALLEST=_SMALLEST, ROOM=room,
            PRECISION="ieee", num_warps=4, num_stages=2 if query.dtype == torch.float32 else 3,
            maxnreg=128,  # four programs a multiprocessor
            enable_fp_fusion=False,  # the compiler may fuse in one variant and not in another
            # what is read of the cache ahead of time is not to be of this step
            **launch_options(cache.device, overlapped=not batch.redone),
        )  # fmt: skip
