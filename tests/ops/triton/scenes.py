"""Steps of the paged attention: decodes and chunks on shuffled blocks, and what is right, in float64."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import torch
from torch import Tensor

from server.layers.spec import AttentionSpec
from server.ops.paged_attention import QUERY_TILE, Chunks, PagedBatch, SharedPrefixes
from server.ops.triton.attention import TritonAttention
from tests.ops.shapes import attention_shape, attention_spec
from tests.ops.triton.checks import relative_error

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
TABLE_WIDTH = 200  # tokens of the longest sequence


def paged_batch(
    decodes: list[int], chunks: list[tuple[int, int]], block_size: int, device: torch.device
) -> PagedBatch:
    """A step of decodes at those positions and chunks (start, end), on shuffled blocks and rows."""
    count = len(decodes) + len(chunks)
    width = -(-TABLE_WIDTH // block_size)
    tables = torch.randperm(count * width).view(count, width).int()
    order = torch.randperm(count).tolist()  # table row of each sequence
    lengths = [1] * len(decodes) + [end - start for start, end in chunks]
    positions = [*decodes, *(p for start, end in chunks for p in range(start, end))]
    bounds = [len(decodes)]
    for start, end in chunks:
        bounds.append(bounds[-1] + end - start)
    tiles = [
        (first, end) for begin, end in itertools.pairwise(bounds) for first in range(begin, end, QUERY_TILE)
    ]

    def to_device(values: list[int] | list[tuple[int, int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    described = Chunks(
        to_device(tiles),
        to_device([b - bounds[0] for b in bounds]),
        to_device([end for _, end in chunks]),
        to_device(order[len(decodes) :]),
        max((end - start for start, end in chunks), default=0),
        max((end for _, end in chunks), default=0),
    )
    rows = [row for row, length in zip(order, lengths, strict=True) for _ in range(length)]
    return PagedBatch(
        len(decodes),
        to_device(rows),
        to_device(positions),
        tables.to(device),
        described if chunks else None,
    )


def share(batch: PagedBatch, runs: list[tuple[int, int]], block_size: int) -> None:
    """Let decodes of a step begin with the same blocks.

    Args:
        runs: of those that follow each other, from the first on: how many, and tokens of their prefix.
    """
    tokens: list[int] = []
    sharers: list[int] = []
    for count, prefix in runs:
        rows = batch.rows[len(tokens) : len(tokens) + count].long()
        batch.tables[rows[1:], : prefix // block_size] = batch.tables[rows[0], : prefix // block_size]
        tokens += [prefix] * count
        sharers += [count, *(-behind for behind in range(1, count))]
    numbers = torch.tensor([tokens, sharers], dtype=torch.int32, device=batch.rows.device)
    batch.shared = SharedPrefixes(*numbers)


def rotated(x: Tensor, rotary: SimpleNamespace, batch: PagedBatch) -> Tensor:
    """Queries or keys of a step, rotated, in float64 on the CPU."""
    positions, x = batch.positions.long().cpu(), x.double().cpu()
    cos, sin = (t.cpu().double()[positions].unsqueeze(1) for t in (rotary.cos, rotary.sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def attend_over(
    query: Tensor, stored: Tensor, batch: PagedBatch, spec: AttentionSpec, sinks: Tensor | None = None
) -> Tensor:
    """[tokens, heads, head_dim] of rotated queries over the stored keys and values of a layer, in float64."""
    attended, tables = torch.empty_like(query), batch.tables.long().cpu()
    group, size = query.shape[1] // stored.shape[3], stored.shape[2]
    places = zip(batch.rows.tolist(), batch.positions.tolist(), strict=True)
    for token, (row, position) in enumerate(places):
        first = 0 if spec.window is None else max(0, position - spec.window + 1)
        context = stored[tables[row, : position // size + 1]].double()
        keys, values = context.transpose(0, 1).flatten(1, 2)[:, first : position + 1]
        keys, values = (x.repeat_interleave(group, 1) for x in (keys, values))
        scores = torch.einsum("hd,nhd->hn", query[token], keys) * spec.scale
        if spec.softcap is not None:
            scores = spec.softcap * (scores / spec.softcap).tanh()
        if sinks is not None:
            scores = torch.cat((scores, sinks.double().cpu()[:, None]), 1)
        weights = scores.softmax(-1)[:, : position + 1 - first]
        attended[token] = torch.einsum("hn,nhd->hd", weights, values)
    return attended


def reference(
    query: Tensor, key: Tensor, value: Tensor, rotary: SimpleNamespace, cache: Tensor, batch: PagedBatch
) -> tuple[Tensor, Tensor]:
    """(attended [tokens, heads, head_dim], layer's cache afterwards), in float64 on the CPU.

    Keys are rounded to the cache's type as they are stored, as everywhere.
    """
    positions, rows, tables = batch.positions.long().cpu(), batch.rows.long().cpu(), batch.tables.long().cpu()
    stored, size = cache.clone().cpu(), cache.shape[2]
    blocks = tables[rows, positions // size]
    stored[blocks, 0, positions % size] = rotated(key, rotary, batch).to(cache.dtype)
    stored[blocks, 1, positions % size] = value.cpu()
    spec = attention_spec(query.shape[1], cache.shape[3], query.shape[2])
    return attend_over(rotated(query, rotary, batch), stored, batch, spec), stored


def rotary_of(head_dim: int, dtype: torch.dtype, device: torch.device) -> SimpleNamespace:
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(TABLE_WIDTH)[:, None] * frequencies.repeat(2)
    return SimpleNamespace(cos=angles.cos().to(device, dtype), sin=angles.sin().to(device, dtype))


def check(
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    block_size: int,
    decodes: list[int],
    chunks: list[tuple[int, int]],
    kind: type[TritonAttention] = TritonAttention,
) -> None:
    check_batch(device, dtype, heads, block_size, paged_batch(decodes, chunks, block_size, device), kind)


def check_batch(
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    block_size: int,
    batch: PagedBatch,
    kind: type[TritonAttention] = TritonAttention,
) -> None:
    num_heads, kv_heads, head_dim = heads
    layers, layer = 3, 1
    shape = (batch.tables.numel(), layers, 2, block_size, kv_heads, head_dim)
    cache = torch.randn(shape, device=device).to(dtype)
    tokens = len(batch.rows)
    joint = torch.randn(tokens, num_heads + 2 * kv_heads, head_dim, device=device).to(dtype)
    query, key, value = torch.split(joint, [num_heads, kv_heads, kv_heads], 1)
    rotary = rotary_of(head_dim, dtype, device)
    expected, stored = reference(query, key, value, rotary, cache[:, layer], batch)
    untouched = cache[:, [0, 2]].clone()

    backend = kind(attention_shape(num_heads, kv_heads, head_dim, block_size, dtype), [rotary], cache)
    backend.prepare(batch)
    attended = backend.forward(layer, query, key, value)

    assert relative_error(attended.view(tokens, num_heads, head_dim), expected) < TOLERANCE[dtype]
    assert relative_error(cache[:, layer], stored) < TOLERANCE[dtype]
    assert torch.equal(cache[:, [0, 2]], untouched)
