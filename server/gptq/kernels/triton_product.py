# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton kernels for products with quantised weights (layout: `TritonKernel`).

A code becomes a number without a conversion: or-ed into the low bits of the float that stands for
2¹⁰ (float16, two codes with one mask) or 2²³ (float32, for bfloat16), it is that number plus the code.
What is multiplied are the whole numbers ``code − zero``, exact in either type; the scale comes after
the products of a group have been added up in float32.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_SPLITS = 16
MAX_ROW_TILE = 64
MIN_COLUMNS = 64


@triton.jit
def _codes(words, sub: tl.constexpr, zero, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """``code - zero`` of sub-block `sub`: [16, columns] in DTYPE."""
    mask: tl.constexpr = (1 << BITS) - 1
    shift: tl.constexpr = BITS * (sub // 2)
    if tl.float16 == DTYPE:
        pair = ((words >> shift) & (mask * 0x10001)) | 0x64006400
        half = ((pair >> 16) if sub % 2 else pair) & 0xFFFF
        return half.to(tl.uint16).to(tl.float16, bitcast=True) - (zero + 1024.0).to(tl.float16)[None, :]
    number = ((words >> (shift + 16 * (sub % 2))) & mask) | 0x4B000000
    return (number.to(tl.float32, bitcast=True) - (zero + 8388608.0)[None, :]).to(DTYPE)


@triton.jit
def _zero_of(zeros, offset, columns, N, ZERO: tl.constexpr):
    """Zero points of a group as float32 [columns]; ZERO ≥ 0: they are all that."""
    if ZERO >= 0:
        return columns.to(tl.float32) * 0 + ZERO
    else:  # noqa: RET505 - Triton compiles what follows a return, and there may be no zeros
        return tl.load(zeros + offset + columns, mask=columns < N, other=0).to(tl.float32)


@triton.jit
def _product_kernel(
    x, words, scales, zeros, y, partials, arrivals, M, N, K, GROUP,
    BITS: tl.constexpr, SUBS: tl.constexpr, ZERO: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One tile of y = x W, summed over one of SPLITS parts of the inputs.

    SUBS: sub-blocks of 16 inputs that share a scale within a block. The program that is last to
    arrive at a tile adds the parts up, in their order: results do not depend on which that is.
    """
    WORD: tl.constexpr = 32 // BITS
    BLOCK: tl.constexpr = 16 * WORD
    tile, split, row_tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns = tile * COLUMNS + tl.arange(0, COLUMNS)
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    inner = tl.arange(0, 16)
    blocks = K // BLOCK
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for block in range(split * blocks // SPLITS, (split + 1) * blocks // SPLITS):
        at = (block * 16 + inner)[:, None] * N + columns[None, :]
        packed = tl.load(words + at, mask=(columns < N)[None, :], other=0)
        for sub in tl.static_range(WORD):
            first = block * BLOCK + sub * 16
            if sub % SUBS == 0:
                offset = first // GROUP * N
                scale = tl.load(scales + offset + columns, mask=columns < N, other=0).to(tl.float32)
                zero = _zero_of(zeros, offset, columns, N, ZERO)
                group = tl.zeros((ROWS, COLUMNS), tl.float32)
            part = tl.load(
                x + rows[:, None] * K + (first + inner)[None, :], mask=(rows < M)[:, None], other=0
            )
            code = _codes(packed, sub, zero, BITS, x.dtype.element_ty)
            group = tl.dot(part, code, group)
            if sub % SUBS == SUBS - 1:
                total += group * scale[None, :]
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    place = rows[:, None] * N + columns[None, :]
    if SPLITS == 1:
        tl.store(y + place, total.to(y.dtype.element_ty), mask=inside)
    else:
        tl.store(partials + split * M * N + place, total, mask=inside)
        tl.debug_barrier()  # all of the tile is written before its arrival is told
        counter = arrivals + row_tile * tl.num_programs(0) + tile
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
            total = tl.zeros((ROWS, COLUMNS), tl.float32)
            for other in range(SPLITS):
                total += tl.load(partials + other * M * N + place, mask=inside, cache_modifier=".cg")
            tl.store(y + place, total.to(y.dtype.element_ty), mask=inside)
            tl.store(counter, 0)


@triton.jit
def _dequantise_kernel(
    words, scales, zeros, weight, N, GROUP,
    BITS: tl.constexpr, SUBS: tl.constexpr, ZERO: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One block of inputs of the weight, [BLOCK, COLUMNS], as floats."""
    WORD: tl.constexpr = 32 // BITS
    block = tl.program_id(1)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inner = tl.arange(0, 16)
    inside = (columns < N)[None, :]
    packed = tl.load(words + (block * 16 + inner)[:, None] * N + columns[None, :], mask=inside, other=0)
    for sub in tl.static_range(WORD):
        first = (block * WORD + sub) * 16
        if sub % SUBS == 0:
            offset = first // GROUP * N
            scale = tl.load(scales + offset + columns, mask=columns < N, other=0).to(tl.float32)
            zero = _zero_of(zeros, offset, columns, N, ZERO)
        code = _codes(packed, sub, zero, BITS, weight.dtype.element_ty)
        value = code.to(tl.float32) * scale[None, :]
        at = (first + inner).to(tl.int64)[:, None] * N + columns[None, :]
        tl.store(weight + at, value.to(weight.dtype.element_ty), mask=inside)


def product(
    x: Tensor,
    words: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    group_size: int,
    zero: int,
    arrivals: Tensor,
) -> Tensor:
    """x [rows, inputs] times the weight: [rows, outputs] in the type of x.

    Args:
        x: contiguous, float16 or bfloat16.
        zero: the zero point of all groups; -1: they are in `zeros`.
        arrivals: int32 zeros, `tiles_at_most` of them; they are zero again afterwards.
    """
    rows, inputs = x.shape
    outputs = words.shape[1]
    block = 16 * 32 // bits
    row_tile = max(16, min(MAX_ROW_TILE, triton.next_power_of_2(rows)))
    columns = MIN_COLUMNS if row_tile == MAX_ROW_TILE else 2 * MIN_COLUMNS
    tiles, row_tiles = triton.cdiv(outputs, columns), triton.cdiv(rows, row_tile)
    splits = _splits(tiles * row_tiles, inputs // block, x.device)
    y = x.new_empty(rows, outputs)
    partials = x.new_empty((splits, rows, outputs) if splits > 1 else (0,), dtype=torch.float32)
    _product_kernel[(tiles, splits, row_tiles)](
        x, words, scales, zeros, y, partials, arrivals, rows, outputs, inputs, group_size,
        BITS=bits, SUBS=_subs(bits, group_size), ZERO=zero, ROWS=row_tile, COLUMNS=columns, SPLITS=splits,
        num_warps=4, num_stages=4,
    )  # fmt: skip
    return y


def tiles_at_most(rows: int, outputs: int) -> int:
    """Tiles of the largest product with up to `rows` rows."""
    return -(-rows // MAX_ROW_TILE) * -(-outputs // MIN_COLUMNS)


def dequantise(
    words: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    group_size: int,
    zero: int,
    dtype: torch.dtype,
) -> Tensor:
    """The weight as floats: `dtype` [inputs, outputs], inputs in the order of groups."""
    blocks, outputs = words.shape[0] // 16, words.shape[1]
    weight = torch.empty(words.shape[0] * (32 // bits), outputs, dtype=dtype, device=words.device)
    _dequantise_kernel[(triton.cdiv(outputs, 128), blocks)](
        words, scales, zeros, weight, outputs, group_size,
        BITS=bits, SUBS=_subs(bits, group_size), ZERO=zero, COLUMNS=128,
    )  # fmt: skip
    return weight


def _subs(bits: int, group_size: int) -> int:
    """Sub-blocks of a block that share a scale."""
    return min(group_size // 16, 32 // bits)


def _splits(tiles: int, blocks: int, device: torch.device) -> int:
    """Parts of the inputs that give every multiprocessor work, each at least two blocks long."""
    wanted = 4 * _multiprocessors(device) // tiles
    return max(1, min(wanted, MAX_SPLITS, blocks // 2))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
