"""Paged attention against float64, over shapes, block sizes and mixes of decodes and chunks."""

from __future__ import annotations

import inspect
import itertools
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from server.continuous_batching.attention import triton_decode
from server.continuous_batching.attention.base import AttentionShape
from server.continuous_batching.attention.flash_backend import FlashAttention, flash_attention
from server.continuous_batching.attention.paged import QUERY_TILE, Chunks, PagedBatch
from server.continuous_batching.attention.select import choose_attention
from server.continuous_batching.attention.triton_backend import TritonAttention
from server.continuous_batching.attention.varlen_backend import VarlenAttention, varlen_attention
from server.continuous_batching.models.config import ModelError
from tests.kernels.conftest import HALF, relative_error

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


def reference(
    query: Tensor, key: Tensor, value: Tensor, rotary: SimpleNamespace, cache: Tensor, batch: PagedBatch
) -> tuple[Tensor, Tensor]:
    """(attended [tokens, heads, head_dim], layer's cache afterwards), in float64 on the CPU.

    Keys are rounded to the cache's type as they are stored, as everywhere.
    """
    positions, rows, tables = batch.positions.long().cpu(), batch.rows.long().cpu(), batch.tables.long().cpu()
    size = cache.shape[2]

    def rotated(x: Tensor) -> Tensor:
        cos, sin = (t.cpu().double()[positions].unsqueeze(1) for t in (rotary.cos, rotary.sin))
        first, second = x.double().cpu().chunk(2, -1)
        return x.double().cpu() * cos + torch.cat((-second, first), -1) * sin

    query, stored = rotated(query), cache.clone().cpu()
    blocks = tables[rows, positions // size]
    stored[blocks, 0, positions % size] = rotated(key).to(cache.dtype)
    stored[blocks, 1, positions % size] = value.cpu()
    attended = torch.empty_like(query)
    group = query.shape[1] // key.shape[1]
    for token, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        context = stored[tables[row, : position // size + 1]].double()
        keys, values = context.transpose(0, 1).flatten(1, 2)[:, : position + 1]
        keys, values = (x.repeat_interleave(group, 1) for x in (keys, values))
        scores = torch.einsum("hd,nhd->hn", query[token], keys) * query.shape[-1] ** -0.5
        attended[token] = torch.einsum("hn,nhd->hd", scores.softmax(-1), values)
    return attended, stored


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
    num_heads, kv_heads, head_dim = heads
    batch = paged_batch(decodes, chunks, block_size, device)
    layers, layer = 3, 1
    shape = (batch.tables.numel(), layers, 2, block_size, kv_heads, head_dim)
    cache = torch.randn(shape, device=device).to(dtype)
    tokens = len(batch.rows)
    joint = torch.randn(tokens, num_heads + 2 * kv_heads, head_dim, device=device).to(dtype)
    query, key, value = torch.split(joint, [num_heads, kv_heads, kv_heads], 1)
    rotary = rotary_of(head_dim, dtype, device)
    expected, stored = reference(query, key, value, rotary, cache[:, layer], batch)
    untouched = cache[:, [0, 2]].clone()

    backend = kind(AttentionShape(num_heads, kv_heads, head_dim, block_size, dtype), rotary, cache)
    backend.prepare(batch)
    attended = backend.forward(layer, query, key, value)

    assert relative_error(attended.view(tokens, num_heads, head_dim), expected) < TOLERANCE[dtype]
    assert relative_error(cache[:, layer], stored) < TOLERANCE[dtype]
    assert torch.equal(cache[:, [0, 2]], untouched)


SHAPES = [(4, 2, 64), (4, 4, 80), (6, 2, 96), (8, 1, 128)]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("heads", SHAPES)
def test_mixed_steps(device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]) -> None:
    check(device, dtype, heads, 16, [0, 15, 16, 130], [(0, 20), (33, 180)])


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
def test_decodes_at_the_edges_of_blocks(device: torch.device, block_size: int) -> None:
    check(device, HALF, (4, 2, 64), block_size, [0, 14, 15, 16, 31, 32, 63, 64, 199], [])


@pytest.mark.parametrize("programs", [1, 4096])
@pytest.mark.parametrize("heads", [(4, 2, 64), (16, 1, 128)])
def test_contexts_in_one_piece_and_in_many(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, heads: tuple[int, int, int], programs: int
) -> None:
    monkeypatch.setattr(triton_decode, "_PROGRAMS", programs)
    check(device, HALF, heads, 16, [0, 31, 32, 33, 63, 64, 65, 130, 199], [])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes the interpreter minutes")
@pytest.mark.parametrize("heads", [(4, 2, 64), (10, 2, 80), (16, 1, 128), (28, 4, 128), (32, 8, 128)])
def test_long_contexts(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, heads: tuple[int, int, int]
) -> None:
    """Of one sequence, on both sides of the border between few and many, and in one piece each."""
    monkeypatch.setattr(sys.modules[__name__], "TABLE_WIDTH", 2048)
    contexts = [2047, 0, 63, 64, 65, 255, 257, 700, 1000]
    border = triton_decode._MANY // heads[1]
    for count in (1, 9, border - 1, border, 4 * border + 9):
        check(device, HALF, heads, 16, list(itertools.islice(itertools.cycle(contexts), count)), [(0, 20)])


def test_decodes_again_and_again(device: torch.device) -> None:
    """What one launch leaves behind (who has arrived, pieces) is nothing to the next."""
    batch = paged_batch([0, 5, 130, 199], [], 16, device)
    cache = torch.randn((batch.tables.numel(), 2, 2, 16, 2, 64), device=device).to(HALF)
    joint = torch.randn(len(batch.rows), 8, 64, device=device).to(HALF)
    query, key, value = torch.split(joint, [4, 2, 2], 1)
    rotary = rotary_of(64, HALF, device)
    backend = TritonAttention(AttentionShape(4, 2, 64, 16, HALF), rotary, cache)
    backend.prepare(batch)
    first = [backend.forward(layer, query, key, value) for layer in (0, 1)]
    assert not torch.equal(*first)
    for _ in range(500 if device.type == "cuda" else 2):
        for layer in (0, 1):
            assert torch.equal(backend.forward(layer, query, key, value), first[layer])


@pytest.mark.parametrize("block_size", [16, 256])
def test_a_chunk_that_begins_and_ends_within_blocks(device: torch.device, block_size: int) -> None:
    check(device, HALF, (4, 2, 64), block_size, [], [(7, 7 + QUERY_TILE + 5)])


@pytest.mark.parametrize("heads", [(4, 2, 64), (8, 1, 128)])
def test_flash_attention(device: torch.device, heads: tuple[int, int, int]) -> None:
    try:
        flash_attention()
    except ImportError as error:
        pytest.skip(str(error))
    check(device, HALF, heads, 16, [0, 15, 130], [(0, 20), (33, 180)], FlashAttention)
    check(device, HALF, heads, 16, [], [(0, 200), (0, 1)], FlashAttention)


VARLEN_STEPS: list[tuple[list[int], list[tuple[int, int]]]] = [
    ([0, 15, 130], [(0, 20), (33, 180), (7, 8)]),
    ([], [(0, 200), (0, 1)]),
]


def test_varlen_attention(device: torch.device) -> None:
    try:
        varlen_attention(AttentionShape(4, 2, 64, 256, HALF))
    except ImportError as error:
        pytest.skip(str(error))
    for heads in [(4, 2, 64), (8, 1, 128)]:
        for decodes, chunks in VARLEN_STEPS:
            check(device, HALF, heads, 256, decodes, chunks, VarlenAttention)


def documented_varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    *, scale: float, window_size: tuple[int, int], enable_gqa: bool, seqused_k: Tensor,
    block_table: Tensor, num_splits: int,
) -> Tensor:  # fmt: skip
    """What torch 2.13 says of `varlen_attn`, in float64, and what its kernels ask of their arguments."""
    assert key.shape[1] % 256 == 0 and key.stride(-1) == value.stride(-1) == block_table.stride(-1) == 1
    assert {t.dtype for t in (cu_seq_q, cu_seq_k, seqused_k, block_table)} == {torch.int32}
    assert window_size == (-1, 0) and enable_gqa and num_splits == 1
    assert cu_seq_k.diff().tolist() == seqused_k.tolist() and max_k == seqused_k.max()
    assert max_q == cu_seq_q.diff().max() and cu_seq_q[-1] == len(query)
    assert block_table.shape == (len(seqused_k), -(-max_k // key.shape[1]))
    outputs, group = [], query.shape[1] // key.shape[2]
    for index, (begin, end) in enumerate(itertools.pairwise(cu_seq_q.tolist())):
        length = int(seqused_k[index])
        keys, values = (x[block_table[index].long()].flatten(0, 1)[:length] for x in (key, value))
        keys, values = (x.double().repeat_interleave(group, 1) for x in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query[begin:end].double(), keys) * scale
        behind = torch.ones(end - begin, length, dtype=torch.bool).triu(length - (end - begin) + 1)
        weights = scores.masked_fill(behind, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs).to(query.dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has the real thing")
@pytest.mark.parametrize(("decodes", "chunks"), VARLEN_STEPS)
def test_varlen_attention_is_told_what_its_documentation_asks_for(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, decodes: list[int], chunks: list[tuple[int, int]]
) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    if "block_table" not in inspect.signature(varlen.varlen_attn).parameters:
        pytest.skip("torch 2.12 has the first block tables")

    def without_content(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    def attend(*args: Any, **options: Any) -> Tensor:
        shapes = {name: without_content(value) for name, value in options.items()}
        real = varlen.varlen_attn(*map(without_content, args), **shapes)
        assert (real.shape, real.dtype) == (args[0].shape, args[0].dtype)
        return documented_varlen_attention(*args, **options)

    module = "server.continuous_batching.attention.varlen_backend.varlen_attention"
    monkeypatch.setattr(module, lambda shape: attend)
    check(device, HALF, (4, 2, 64), 256, decodes, chunks, VarlenAttention)


def test_a_backend_chosen_by_name_runs_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = AttentionShape(4, 2, 64, 16, torch.bfloat16)
    with pytest.raises(ModelError, match="'flash' is for NVIDIA GPUs"):
        choose_attention(shape, torch.device("cpu"), "flash")
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    assert choose_attention(shape, cuda, "triton")[0] is TritonAttention
    backend, reason = choose_attention(shape, cuda)
    assert backend is TritonAttention and "compute capability 8.9" in reason
    with pytest.raises(ModelError, match=r"'flash' .* compute capability 8\.9"):
        choose_attention(shape, cuda, "flash")
    with pytest.raises(ModelError, match="blocks of 256 tokens, not of 16"):
        choose_attention(shape, cuda, "varlen")
    wide = AttentionShape(4, 2, 256, 16, torch.bfloat16)
    assert "heads of 16 to 128 numbers" in choose_attention(wide, cuda)[1]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert choose_attention(wide, cuda, "triton")[0] is TritonAttention
    with pytest.raises(ModelError, match="heads of 16 to 256 numbers on this GPU, the model has 512"):
        choose_attention(AttentionShape(4, 2, 512, 16, torch.bfloat16), cuda, "triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(ModelError, match=r"compute capability 8\.0, the GPU has 7\.5"):
        choose_attention(shape, cuda, "triton")
    assert "has 7.5" in choose_attention(shape, cuda)[1]


def test_padding_stores_nothing(device: torch.device) -> None:
    batch = paged_batch([5, 9], [], 16, device)
    batch.positions[1] = -1
    cache = torch.zeros((batch.tables.numel(), 1, 2, 16, 2, 64), device=device)
    joint = torch.randn(2, 8, 64, device=device)
    query, key, value = torch.split(joint, [4, 2, 2], 1)
    rotary = rotary_of(64, torch.float32, device)
    backend = TritonAttention(AttentionShape(4, 2, 64, 16, torch.float32), rotary, cache)
    backend.prepare(batch)
    backend.forward(0, query, key, value)
    written = cache.flatten(4).abs().sum(-1).nonzero()[:, [0, 2, 3]].unique(dim=0).tolist()
    block = int(batch.tables[batch.rows[0].long(), 0])
    assert written == [[block, 0, 5], [block, 1, 5]]
