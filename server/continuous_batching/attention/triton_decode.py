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

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.continuous_batching.attention.paged import PagedBatch
from server.continuous_batching.kernels.triton_support import LOG2_E, launch_options, next_power_of_two
from server.continuous_batching.layers.rotary import Rotary

_MAX_SPLITS = 64
_PROGRAMS = 512
"""About as many run at once on a data-centre GPU."""
_MANY = 256
"""Pairs of sequence and key head whose contexts are split for twice as many: those of unequal length then
end together. A power of two, at which the number of pieces changes anyway: steps with prompts, of any number
of decodes, then take no kernel that was not compiled for a captured size."""
_TILE_ELEMENTS = 4096
"""Of the keys that a program reads at a time: four programs then share a multiprocessor's memory."""


@triton.jit
def _load_tile(
    base, table, n, valid, d, block_stride, value_offset,
    BLOCK_SIZE: tl.constexpr, TOKEN: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Keys and values of the tokens `n`, TOKEN elements of the cache apart within a block."""
    block = tl.load(table + n // BLOCK_SIZE, mask=valid, other=0).to(tl.int64)
    at = base + (block * block_stride + (n % BLOCK_SIZE) * TOKEN)[:, None] + d[None, :]
    mask = valid[:, None] & (d < HEAD_DIM)[None, :]
    return tl.load(at, mask=mask, other=0.0), tl.load(at + value_offset, mask=mask, other=0.0)


@triton.jit
def _attend_tile(q, k, v, valid, best, total, acc, scale, PRECISION: tl.constexpr):
    """(best, total, acc) of the online softmax after a tile of keys and values more."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    scores = tl.where(valid[None, :], scores, float("-inf"))
    peak = tl.maximum(best, tl.max(scores, 1))
    weights = tl.exp2(scores - peak[:, None])
    fade = tl.exp2(best - peak)
    total = total * fade + tl.sum(weights, 1)
    acc = acc * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return peak, total, acc


@triton.jit
def _piece_of(length, SPLITS: tl.constexpr, TILE: tl.constexpr):
    """(tokens of a piece, how many pieces there are) of a context of `length` tokens."""
    piece = tl.maximum(tl.cdiv(tl.cdiv(length, SPLITS), TILE), 1) * TILE
    return piece, tl.maximum(tl.cdiv(length, piece), 1)


@triton.jit
def _load_rotated(at, mask, d, cos, sin, HEAD_DIM: tl.constexpr):
    """Elements `d` of heads, rotated: each with its partner, which has its place in the other half."""
    low = d < HEAD_DIM // 2
    x = tl.load(at, mask=mask, other=0.0)
    partner = tl.load(at + tl.where(low, HEAD_DIM // 2, -(HEAD_DIM // 2)), mask=mask, other=0.0)
    turned = x.to(tl.float32) * cos + tl.where(low, -1.0, 1.0) * partner.to(tl.float32) * sin
    return turned.to(x.dtype)


@triton.jit
def _begin_with(q, k, v, present, scale):
    """(best, total, acc) of the online softmax after one key and value, or, where not `present`, none."""
    score = tl.sum(q.to(tl.float32) * k.to(tl.float32)[None, :], 1) * scale
    best = tl.where(present, score, float("-inf"))
    total = tl.zeros([q.shape[0]], tl.float32) + tl.where(present, 1.0, 0.0)
    acc = tl.zeros([q.shape[0], q.shape[1]], tl.float32) + v.to(tl.float32)[None, :]
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
def _hand_in(
    acc, scale, partial, scales, arrivals, output, pair, split, live,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_TILE: tl.constexpr, SPLITS: tl.constexpr,
    MERGE_HEADS: tl.constexpr, MERGE_TILE: tl.constexpr,
):  # fmt: skip
    """Write down a piece of a pair of sequence and key head; the last of its `live` pieces merges them."""
    g = tl.arange(0, acc.shape[0])
    d = tl.arange(0, DIM_TILE)
    out = (pair * GROUP + g) * SPLITS + split
    mask = (g < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    tl.store(partial + out[:, None] * HEAD_DIM + d[None, :], acc, mask=mask)
    tl.store(scales + out, scale, mask=g < GROUP)
    tl.debug_barrier()  # every thread has stored before one of them says so
    if tl.atomic_add(arrivals + pair, 1, sem="acq_rel") == live - 1:
        heads = pair * GROUP + tl.minimum(tl.arange(0, MERGE_HEADS), GROUP - 1)
        _merge(partial, scales, output, heads, live, HEAD_DIM, DIM_TILE, SPLITS, MERGE_TILE)
        tl.store(arrivals + pair, 0)


@triton.jit
def _decode(
    query, key, value, cos_table, sin_table, cache, rows, positions, tables,
    partial, scales, arrivals, output,
    query_stride, key_stride, value_stride, table_stride, block_stride, layer_offset, value_offset, scale,
    GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    MERGE_HEADS: tl.constexpr, MERGE_TILE: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (key head, piece, sequence); programs start in the order of the sequences.

    Before it waits, it reads only what no kernel of the step writes once the tokens are embedded:
    places, tables, angles, and the cache up to the new token.
    """
    TOKEN: tl.constexpr = KV_HEADS * HEAD_DIM
    if PDL:
        gdc_launch_dependents()
    kv_head, split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions + sequence)
    row = tl.load(rows + sequence).to(tl.int64)
    piece, live = _piece_of(position, SPLITS, TILE)
    begin = split * piece
    end = tl.minimum(begin + piece, position)
    d = tl.arange(0, DIM_TILE)
    d_valid = d < HEAD_DIM
    table = tables + row * table_stride
    base = cache + layer_offset + kv_head * HEAD_DIM
    n = begin + tl.arange(0, TILE)
    valid = n < end
    k, v = _load_tile(base, table, n, valid, d, block_stride, value_offset, BLOCK_SIZE, TOKEN, HEAD_DIM)
    present = d_valid & (position >= 0)
    cos = tl.load(cos_table + position * HEAD_DIM + d, mask=present, other=0.0).to(tl.float32)
    sin = tl.load(sin_table + position * HEAD_DIM + d, mask=present, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    if (position < 0) | (split >= live):
        return

    sequence = sequence.to(tl.int64)
    g = tl.arange(0, GROUP_TILE)
    q_mask = (g < GROUP)[:, None] & d_valid[None, :]
    at = query + sequence * query_stride + (kv_head * GROUP + g)[:, None] * HEAD_DIM + d[None, :]
    q = _load_rotated(at, q_mask, d[None, :], cos[None, :], sin[None, :], HEAD_DIM)

    first = split == 0
    mask = d_valid & first
    at = key + sequence * key_stride + kv_head * HEAD_DIM + d
    k_new = _load_rotated(at, mask, d, cos, sin, HEAD_DIM)
    v_new = tl.load(value + sequence * value_stride + kv_head * HEAD_DIM + d, mask=mask, other=0.0)
    block = tl.load(table + position // BLOCK_SIZE).to(tl.int64)
    at = base + block * block_stride + (position % BLOCK_SIZE) * TOKEN + d
    tl.store(at, k_new, mask=mask)
    tl.store(at + value_offset, v_new, mask=mask)

    best, total, acc = _begin_with(q, k_new, v_new, first, scale)
    best, total, acc = _attend_tile(q, k, v, valid, best, total, acc, scale, PRECISION)
    for n0 in range(begin + TILE, end, TILE):
        n = n0 + tl.arange(0, TILE)
        valid = n < end
        k, v = _load_tile(base, table, n, valid, d, block_stride, value_offset, BLOCK_SIZE, TOKEN, HEAD_DIM)
        best, total, acc = _attend_tile(q, k, v, valid, best, total, acc, scale, PRECISION)
    acc = acc / total[:, None]
    pair = sequence * KV_HEADS + kv_head
    if SPLITS == 1:
        at = output + (pair * GROUP + g)[:, None] * HEAD_DIM + d[None, :]
        tl.store(at, acc.to(output.dtype.element_ty), mask=q_mask)
    else:
        _hand_in(
            acc, best + tl.log2(total), partial, scales, arrivals, output, pair, split, live,
            GROUP, HEAD_DIM, DIM_TILE, SPLITS, MERGE_HEADS, MERGE_TILE,
        )  # fmt: skip


def num_splits(pairs: int, max_length: int, tile: int) -> int:
    """Pieces of each context, a power of two.

    Args:
        pairs: of sequence and key head.
        max_length: tokens of the longest context that there may be.
        tile: tokens that a program reads at a time.
    """
    programs = _PROGRAMS if pairs < _MANY else 2 * _PROGRAMS
    wanted = next_power_of_two(-(-programs // pairs))
    return min(wanted, _MAX_SPLITS, next_power_of_two(-(-max_length // tile)))


class DecodeAttention:
    """Attention of a step's decodes.

    Args:
        rotary: cosines and sines.
        cache: [blocks, layers, 2, block_size, kv_heads, head_dim].
    """

    def __init__(self, rotary: Rotary, cache: Tensor) -> None:
        self._rotary = rotary
        self._cache = cache
        self._arrivals = torch.empty(0, dtype=torch.int32, device=cache.device)

    def __call__(
        self, layer: int, batch: PagedBatch, query: Tensor, key: Tensor, value: Tensor, output: Tensor
    ) -> None:
        """Rotate, store and attend.

        Args:
            query: [decodes, heads, head_dim], rows may be apart (a slice of a joint projection).
            key, value: [decodes, kv_heads, head_dim], likewise.
            output: [decodes, heads, head_dim], contiguous; filled.
        """
        cache = self._cache
        sequences, heads, head_dim = query.shape
        kv_heads, block_size = cache.shape[4], cache.shape[3]
        group, dim_tile = heads // kv_heads, next_power_of_two(head_dim)
        tile = _TILE_ELEMENTS // dim_tile
        splits = num_splits(sequences * kv_heads, batch.tables.shape[1] * block_size, tile)
        scales = torch.empty((sequences, heads, splits), dtype=torch.float32, device=cache.device)
        partial = torch.empty((*scales.shape, head_dim), dtype=torch.float32, device=cache.device)
        merge_heads = next_power_of_two(group)
        _decode[(kv_heads, splits, sequences)](
            query, key, value, self._rotary.cos, self._rotary.sin, cache,
            batch.rows, batch.positions, batch.tables, partial, scales, self._arrivals_of(batch), output,
            query.stride(0), key.stride(0), value.stride(0), batch.tables.stride(0), cache.stride(0),
            layer * cache.stride(1), cache.stride(2), head_dim**-0.5 * LOG2_E,
            GROUP=group, GROUP_TILE=max(merge_heads, 16), KV_HEADS=kv_heads, HEAD_DIM=head_dim,
            DIM_TILE=dim_tile, BLOCK_SIZE=block_size, TILE=tile, SPLITS=splits, MERGE_HEADS=merge_heads,
            MERGE_TILE=max(min(splits, 8192 // (merge_heads * dim_tile)), 1), PRECISION="ieee",
            num_warps=4, num_stages=2 if query.dtype == torch.float32 else 3,
            **launch_options(cache.device),
        )  # fmt: skip

    def _arrivals_of(self, batch: PagedBatch) -> Tensor:
        """int32, for each context and key head that there may be: pieces that have ended; 0 between launches.

        An engine's tables always have the same rows, so that captured graphs find the numbers in their place.
        """
        pairs = batch.tables.shape[0] * self._cache.shape[4]
        if len(self._arrivals) < pairs:
            self._arrivals = torch.zeros(pairs, dtype=torch.int32, device=self._cache.device)
        return self._arrivals
