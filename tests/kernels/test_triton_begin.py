"""What a step of decodes begins with: tokens of its rows, and what changed in the block tables."""

from __future__ import annotations

import pytest
import torch

from server.continuous_batching.decoding.params import SamplingParams
from server.continuous_batching.engine.paged_batch import PagedBatchBuilder
from server.continuous_batching.kernels.triton_begin import begin_decodes
from server.continuous_batching.scheduler.plan import Plan
from server.continuous_batching.scheduler.request import Request, Sequence


@pytest.mark.parametrize("size", [1, 5, 300])
def test_tables_are_written_where_told_and_nowhere_else(device: torch.device, size: int) -> None:
    numbers = torch.randperm(400, device=device, dtype=torch.int32)
    rows, last_tokens = torch.arange(size, device=device, dtype=torch.int32).flip(0), numbers + 7
    tables = torch.full((400, 9), -5, device=device, dtype=torch.int32)
    places = torch.randperm(tables.numel(), device=device, dtype=torch.int32)[:size]
    places[::2] = -1
    blocks = torch.arange(size, device=device, dtype=torch.int32) + 1000
    expected = tables.clone()
    expected.view(-1)[places[1::2].long()] = blocks[1::2]
    tokens = begin_decodes(rows, last_tokens, places, blocks, tables)
    assert torch.equal(tokens, last_tokens[:size].flip(0))
    assert torch.equal(tables, expected)


def decoding(row: int, blocks: list[int], mirrored: int) -> Sequence:
    request = Request(f"r{row}", [1, 2, 3], SamplingParams(max_new_tokens=9), arrival=0.0)
    (sequence,) = request.sequences
    sequence.row, sequence.blocks, sequence.mirrored, sequence.num_computed = row, blocks, mirrored, 10 * row
    return sequence


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("mirrored", [3, 2, 0])
def test_a_padded_step(device: torch.device, size: int, mirrored: int) -> None:
    """With nothing new, a block each as usual, and more than a captured kernel takes."""
    last_tokens = torch.arange(100, 109, dtype=torch.int32, device=device)
    builder = PagedBatchBuilder(8, 6, 64, 16, last_tokens)
    builder._tables.fill_(-5)
    held = {row: [10 * row + i for i in range(4)] for row in (6, 1, 3)}
    plan = Plan(decodes=[decoding(row, blocks, mirrored) for row, blocks in held.items()])
    builder.send_decodes(Plan())  # the step before, of which nothing may be left
    builder.send_decodes(plan)
    batch, tokens = builder.decode_batch(size), builder.begin_decodes(size)
    padding = size - 3
    assert tokens.tolist() == [106, 101, 103] + [108] * padding
    assert batch.attention.rows.tolist() == [6, 1, 3] + [8] * padding
    assert batch.attention.positions.tolist() == [60, 10, 30] + [-1] * padding
    known = {row: [-5] * mirrored + blocks[mirrored:] + [-5, -5] for row, blocks in held.items()}
    assert builder._tables.tolist() == [known.get(row, [-5] * 6) for row in range(9)]
    assert all(sequence.mirrored == 4 for sequence in plan.decodes)
