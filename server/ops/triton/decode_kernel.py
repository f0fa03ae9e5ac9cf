"""Paged attention for decodes: rotation, cache write, split-K attention and merge in one kernel.

Split-K decoding (Flash-Decoding; Dao et al., 2023): a program attends with the new token of a sequence
to a piece of its context, for all query heads that share a key head, so that keys and values are read once.
The program of a context that ends last merges the pieces by their log-sum-exp.

Where a step has few sequences, each launch costs as much as what it does. So the new token is rotated
here and attended to from registers, while the first program of its context stores it. Nothing is read
from the cache then that this step writes, and the first keys and values are asked for before the kernel
in front has ended.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.ops.triton.float8_cache import as_stored, to_multiply


@triton.jit
def blocks_of(table, n, end, BLOCK_SIZE: tl.constexpr):
    """The blocks that hold the tokens `n`; those from `end` on have none."""
    return tl.load(table + n // BLOCK_SIZE, mask=n < end, other=0).to(tl.int64)


@triton.jit
def load_tile(
    base, block, n, valid, d, block_stride, value_offset,
    BLOCK_SIZE: tl.constexpr, TOKEN: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Keys and values of the tokens `n` in their blocks, TOKEN elements of the cache apart within one."""
    at = base + (block * block_stride + (n % BLOCK_SIZE) * TOKEN)[:, None] + d[None, :]
    mask = valid[:, None] & (d < HEAD_DIM)[None, :]
    return tl.load(at, mask=mask, other=0.0), tl.load(at + value_offset, mask=mask, other=0.0)


@triton.jit
def cap_scores(scores, SOFTCAP: tl.constexpr):
    """``SOFTCAP · tanh(scores / SOFTCAP)``; 0: as they are."""
    if SOFTCAP != 0.0:
        scores = SOFTCAP - 2.0 * SOFTCAP / (1.0 + tl.exp2(scores * (2.885390081777927 / SOFTCAP)))  # 2 / ln 2
    return scores


@triton.jit
def attend_tile(q, k, v, valid, best, total, acc, scale, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):
    """(best, total, acc) of the online softmax after a tile of keys and values more."""
    scores = cap_scores(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale, SOFTCAP)
    scores = tl.where(valid[None, :], scores, float("-inf"))
    peak = tl.maximum(best, tl.max(scores, 1))
    weights = tl.exp2(scores - peak[:, None])
    fade = tl.exp2(best - peak)
    total = total * fade + tl.sum(weights, 1)
    acc = acc * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return peak, total, acc


@triton.jit
def piece_of(length, SPLITS: tl.constexpr, TILE: tl.constexpr):
    """(tokens of a piece, how many pieces there are) of a context of `length` tokens."""
    piece = tl.maximum(tl.cdiv(tl.cdiv(length, SPLITS), TILE), 1) * TILE
    return piece, tl.maximum(tl.cdiv(length, piece), 1)


@triton.jit
def load_rotated(at, mask, d, cos, sin, ROTARY_DIM: tl.constexpr):
    """Elements `d` of heads, the first ROTARY_DIM rotated: each with its partner in their other half."""
    x = tl.load(at, mask=mask, other=0.0)
    if ROTARY_DIM > 0:
        low = d < ROTARY_DIM // 2
        offset = tl.where(low, ROTARY_DIM // 2, -(ROTARY_DIM // 2))
        partner = tl.load(at + offset, mask=mask & (d < ROTARY_DIM), other=0.0)
        turned = x.to(tl.float32) * cos + tl.where(low, -1.0, 1.0) * partner.to(tl.float32) * sin
        x = turned.to(x.dtype)
    return x


@triton.jit
def angles_of(cos_table, sin_table, position, d, ROTARY_DIM: tl.constexpr):
    """(cosines, sines) of elements `d` of heads at `position`."""
    cos, sin = d, d
    if ROTARY_DIM > 0:
        present = (d < ROTARY_DIM) & (position >= 0)
        cos = tl.load(cos_table + position * ROTARY_DIM + d, mask=present, other=1.0).to(tl.float32)
        sin = tl.load(sin_table + position * ROTARY_DIM + d, mask=present, other=0.0).to(tl.float32)
    return cos, sin


@triton.jit
def take_token(
    query, key, value, cos, sin, base, table, kv_head, position, first, k_scale, v_scale, cache_scales,
    block_stride, value_offset,
    GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TOKEN: tl.constexpr, ROTARY_DIM: tl.constexpr,
):  # fmt: skip
    """(queries, key, value) of a new token, rotated; the `first` program to take it stores the last two.

    The key and the value are as later tokens will see them.
    """
    g, d = tl.arange(0, GROUP_TILE), tl.arange(0, DIM_TILE)
    mask = (g < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    at = query + (kv_head * GROUP + g)[:, None] * HEAD_DIM + d[None, :]
    q = load_rotated(at, mask, d[None, :], cos[None, :], sin[None, :], ROTARY_DIM)
    mask = (d < HEAD_DIM) & first
    k_new = load_rotated(key + kv_head * HEAD_DIM + d, mask, d, cos, sin, ROTARY_DIM)
    k_new = as_stored(k_new, k_scale, cache_scales)
    v_new = tl.load(value + kv_head * HEAD_DIM + d, mask=mask, other=0.0)
    v_new = as_stored(v_new, v_scale, cache_scales)
    block = tl.load(table + position // BLOCK_SIZE).to(tl.int64)
    at = base + block * block_stride + (position % BLOCK_SIZE) * TOKEN + d
    tl.store(at, k_new, mask=mask)
    tl.store(at + value_offset, v_new, mask=mask)
    return to_multiply(q, cache_scales), k_new, v_new


@triton.jit
def begin_with(q, k, v, present, scale, SOFTCAP: tl.constexpr):
    """(best, total, acc) of the online softmax after one key and value, or, where not `present`, none."""
    score = tl.sum(q.to(tl.float32) * k.to(tl.float32)[None, :], 1) * scale
    best = tl.where(present, cap_scores(score, SOFTCAP), float("-inf"))
    total = tl.zeros([q.shape[0]], tl.float32) + tl.where(present, 1.0, 0.0)
    acc = tl.zeros([q.shape[0], q.shape[1]], tl.float32) + v.to(tl.float32)[None, :]
    return best, total, acc


@triton.jit
def add_sink(
    sinks, kv_head, present, best, total, acc, GROUP: tl.constexpr, GROUP_TILE: tl.constexpr
):  # fmt: skip
    """(best, total, acc) with the sinks of a group of heads, scores that have no value, where `present`;
    else, or where there are no `sinks`, as they were."""
    if sinks is not None:
        g = tl.arange(0, GROUP_TILE)
        sink = tl.load(sinks + kv_head * GROUP + g, mask=g < GROUP, other=0.0).to(tl.float32)
        sink *= 1.4426950408889634  # 1 / ln 2
        peak = tl.where(present, tl.maximum(best, sink), 0.0)
        fade = tl.where(present, tl.exp2(best - peak), 1.0)
        total = total * fade + tl.where(present, tl.exp2(sink - peak), 0.0)
        best, acc = tl.where(present, peak, best), acc * fade[:, None]
    return best, total, acc


@triton.jit
def _merge(
    partial, scales, output, line, live,
    HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write the heads `line` of `output` from their `live` pieces."""
    d = tl.arange(0, DIM_TILE)
    best = tl.full([line.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([line.shape[0]], tl.float32)
    acc = tl.zeros([line.shape[0], DIM_TILE], tl.float32)
    for s0 in range(0, live, TILE):
        s = s0 + tl.arange(0, TILE)
        piece = line[:, None] * SPLITS + s[None, :]
        mask = (s < live)[None, :]
        # past the first-level cache, which knows nothing of other multiprocessors' stores
        scale = tl.load(scales + piece, mask=mask, other=float("-inf"), cache_modifier=".cg")
        at = partial + piece[:, :, None] * HEAD_DIM + d[None, None, :]
        mask = mask[:, :, None] & (d < HEAD_DIM)[None, None, :]
        part = tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
        peak = tl.maximum(best, tl.max(scale, 1))
        weights = tl.exp2(scale - peak[:, None])
        fade = tl.exp2(best - peak)
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None] + tl.sum(part * weights[:, :, None], 1)
        best = peak
    at = output + line[:, None] * HEAD_DIM + d[None, :]
    merged = (acc / total[:, None]).to(output.dtype.element_ty)
    tl.store(at, merged, mask=(d < HEAD_DIM)[None, :])


@triton.jit
def hand_in(
    acc, scale, partial, scales, arrivals, output, pair, split, live,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr, SPLITS: tl.constexpr,
    MERGE_HEADS: tl.constexpr, MERGE_TILE: tl.constexpr,
):  # fmt: skip
    """Write down a piece of a pair of sequence and key head; the last of its `live` pieces merges them."""
    g = tl.arange(0, acc.shape[0])
    d = tl.arange(0, DIM_TILE)
    head = pair * GROUP + g
    mask = (g < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    if SPLITS == 1:
        at = output + head[:, None] * HEAD_DIM + d[None, :]
        tl.store(at, acc.to(output.dtype.element_ty), mask=mask)
    else:
        out = head * SPLITS + split
        tl.store(partial + out[:, None] * HEAD_DIM + d[None, :], acc, mask=mask)
        tl.store(scales + out, scale, mask=g < GROUP)
        tl.debug_barrier()  # every thread has stored before one of them says so
        if tl.atomic_add(arrivals + pair, 1, sem="acq_rel") == live - 1:
            heads = pair * GROUP + tl.minimum(tl.arange(0, MERGE_HEADS), GROUP - 1)
            _merge(partial, scales, output, heads, live, HEAD_DIM, DIM_TILE, SPLITS, MERGE_TILE)
            tl.store(arrivals + pair, 0)


@triton.jit
def decode(
    query, key, value, cos_table, sin_table, sinks, cache, rows, positions, tables,
    partial, scales, arrivals, output,
    query_stride, key_stride, value_stride, table_stride, block_stride, layer_offset, value_offset, scale,
    GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROTARY_DIM: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    MERGE_HEADS: tl.constexpr, MERGE_TILE: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (key head, piece, sequence); programs start in the order of the sequences.

    WINDOW, if not 0, is how many tokens the new one sees at most: the pieces are of those alone.
    Before it waits, it reads only what no kernel of the step writes once the tokens are embedded:
    places, tables, angles, and the cache up to the new token.
    """
    TOKEN: tl.constexpr = KV_HEADS * HEAD_DIM
    if PDL:
        gdc_launch_dependents()
    kv_head, split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions + sequence)
    start = 0 if WINDOW == 0 else tl.maximum(position - WINDOW + 1, 0)
    piece, live = piece_of(position - start, SPLITS, TILE)
    begin = start + split * piece
    end = tl.minimum(begin + piece, position)
    d = tl.arange(0, DIM_TILE)
    table = tables + tl.load(rows + sequence).to(tl.int64) * table_stride
    base = cache + layer_offset + kv_head * HEAD_DIM
    n = begin + tl.arange(0, TILE)
    valid = n < end
    block = blocks_of(table, n, end, BLOCK_SIZE)
    k, v = load_tile(base, block, n, valid, d, block_stride, value_offset, BLOCK_SIZE, TOKEN, HEAD_DIM)
    block = blocks_of(table, n + TILE, end, BLOCK_SIZE)
    cos, sin = angles_of(cos_table, sin_table, position, d, ROTARY_DIM)
    if PDL:
        gdc_wait()
    if (position < 0) | (split >= live):
        return

    sequence = sequence.to(tl.int64)
    first = split == 0
    q, k_new, v_new = take_token(
        query + sequence * query_stride, key + sequence * key_stride, value + sequence * value_stride,
        cos, sin, base, table, kv_head, position, first, 1.0, 1.0, None, block_stride, value_offset,
        GROUP, GROUP_TILE, HEAD_DIM, DIM_TILE, BLOCK_SIZE, TOKEN, ROTARY_DIM,
    )  # fmt: skip
    best, total, acc = begin_with(q, k_new, v_new, first, scale, SOFTCAP)
    best, total, acc = add_sink(sinks, kv_head, first, best, total, acc, GROUP, GROUP_TILE)
    best, total, acc = attend_tile(q, k, v, valid, best, total, acc, scale, SOFTCAP, PRECISION)
    for n0 in range(begin + TILE, end, TILE):
        n = n0 + tl.arange(0, TILE)
        valid = n < end
        # blocks are looked up a tile ahead: keys and values are asked for as early as there are buffers
        k, v = load_tile(base, block, n, valid, d, block_stride, value_offset, BLOCK_SIZE, TOKEN, HEAD_DIM)
        block = blocks_of(table, n + TILE, end, BLOCK_SIZE)
        best, total, acc = attend_tile(q, k, v, valid, best, total, acc, scale, SOFTCAP, PRECISION)
    hand_in(
        acc / total[:, None], best + tl.log2(total), partial, scales, arrivals, output,
        sequence * KV_HEADS + kv_head, split, live,
        GROUP, HEAD_DIM, DIM_TILE, SPLITS, MERGE_HEADS, MERGE_TILE,
    )  # fmt: skip
