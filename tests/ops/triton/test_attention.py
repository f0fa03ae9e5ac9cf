"""Paged attention against float64, over shapes, block sizes and mixes of decodes and chunks."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from server.ops.paged_attention import QUERY_TILE
from server.ops.triton import decode_attention as triton_decode
from server.ops.triton.attention import TritonAttention
from server.ops.triton.decode_attention import Tuning
from server.ops.triton.flash_attention import FlashAttention, flash_attention
from tests.ops.shapes import attention_shape
from tests.ops.triton import scenes
from tests.ops.triton.checks import HALF
from tests.ops.triton.scenes import check, check_batch, paged_batch, rotary_of

SHAPES = [(4, 2, 64), (4, 4, 80), (6, 2, 96), (8, 1, 128)]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_tokens_that_are_decoded_again(device: torch.device, dtype: torch.dtype) -> None:
    """They attend to each other, and to a chunk that is computed beside them."""
    batch = paged_batch([9, 35, 36, 37, 38], [(0, 35)], 16, device)
    batch.rows[1:5] = batch.rows[5]
    batch.redone = 4
    check_batch(device, dtype, (4, 2, 64), 16, batch)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("heads", SHAPES)
def test_mixed_steps(device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]) -> None:
    check(device, dtype, heads, 16, [0, 15, 16, 130], [(0, 20), (33, 180)])


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
def test_decodes_at_the_edges_of_blocks(device: torch.device, block_size: int) -> None:
    check(device, HALF, (4, 2, 64), block_size, [0, 14, 15, 16, 31, 32, 63, 64, 199], [])


@pytest.mark.parametrize("tuning", [triton_decode.SHARED, Tuning(2048, 1024, 1), Tuning(4096, 1024, 2)])
@pytest.mark.parametrize("programs", [1, 4096])
@pytest.mark.parametrize("heads", [(4, 2, 64), (16, 1, 128)])
def test_contexts_in_one_piece_and_in_many(
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    heads: tuple[int, int, int],
    programs: int,
    tuning: Tuning,
) -> None:
    monkeypatch.setattr(triton_decode, "PLAIN", {0: replace(tuning, programs=programs)})
    check(device, HALF, heads, 16, [0, 31, 32, 33, 63, 64, 65, 130, 199], [])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes the interpreter minutes")
@pytest.mark.parametrize("heads", [(4, 2, 64), (10, 2, 80), (16, 1, 128), (28, 4, 128), (32, 8, 128)])
def test_long_contexts(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, heads: tuple[int, int, int]
) -> None:
    """Of one sequence, on both sides of the border between few and many, and in one piece each."""
    monkeypatch.setattr(scenes, "TABLE_WIDTH", 2048)
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
    backend = TritonAttention(attention_shape(4, 2, 64, 16, HALF), [rotary], cache)
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


def test_padding_stores_nothing(device: torch.device) -> None:
    batch = paged_batch([5, 9], [], 16, device)
    batch.positions[1] = -1
    cache = torch.zeros((batch.tables.numel(), 1, 2, 16, 2, 64), device=device)
    joint = torch.randn(2, 8, 64, device=device)
    query, key, value = torch.split(joint, [4, 2, 2], 1)
    rotary = rotary_of(64, torch.float32, device)
    backend = TritonAttention(attention_shape(4, 2, 64, 16, torch.float32), [rotary], cache)
    backend.prepare(batch)
    backend.forward(0, query, key, value)
    written = cache.flatten(4).abs().sum(-1).nonzero()[:, [0, 2, 3]].unique(dim=0).tolist()
    block = int(batch.tables[batch.rows[0].long(), 0])
    assert written == [[block, 0, 5], [block, 1, 5]]
