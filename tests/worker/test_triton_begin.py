"""What a step of decodes begins with: tokens of its rows, and what changed in the block tables."""

from __future__ import annotations

import pytest
import torch

from server.scheduling.block_table import BlockTable
from server.scheduling.params import SamplingParams
from server.scheduling.plan import Plan
from server.scheduling.request import Request, Sequence
from server.scheduling.step import StepInput
from server.scheduling.step_builder import StepBuilder
from server.worker.paged_batch import PagedBatchBuilder
from server.worker.triton_begin import begin_decodes


@pytest.mark.parametrize("size", [1, 5, 300])
def test_tables_are_written_where_told_and_nowhere_else(device: torch.device, size: int) -> None:
    numbers = torch.randperm(400, device=device, dtype=torch.int32)
    rows, known = torch.arange(size, device=device, dtype=torch.int32).flip(0), numbers.view(-1, 1) * 3
    known = known + torch.arange(3, device=device, dtype=torch.int32)
    positions = rows % 3
    tables = torch.full((400, 9), -5, device=device, dtype=torch.int32)
    places = torch.randperm(tables.numel(), device=device, dtype=torch.int32)[:size]
    places[::2] = -1
    blocks = torch.arange(size, device=device, dtype=torch.int32) + 1000
    expected = tables.clone()
    expected.view(-1)[places[1::2].long()] = blocks[1::2]
    tokens = begin_decodes(rows, positions, known, places, blocks, tables)
    assert torch.equal(tokens, known[rows.long(), positions.long()])
    assert torch.equal(tables, expected)


def decoding(row: int, blocks: list[int], mirrored: int) -> Sequence:
    request = Request(f"r{row}", [1, 2, 3], SamplingParams(max_new_tokens=9), arrival=0.0)
    (sequence,) = request.sequences
    table = BlockTable()
    table.blocks, table.mirrored = blocks, mirrored
    sequence.slot, sequence.tables, sequence.stale, sequence.num_computed = row, [table], True, 10 * row
    return sequence


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("mirrored", [3, 2, 0])
def test_a_padded_step(device: torch.device, size: int, mirrored: int) -> None:
    """With nothing new, a block each as usual, and more than a captured kernel takes."""
    known = torch.arange(9, dtype=torch.int32, device=device).view(-1, 1) * 100
    known = known + torch.arange(90, dtype=torch.int32, device=device)
    builder = PagedBatchBuilder(8, 8, 6, 64, 16, known)
    builder._tables.fill_(-5)
    held = {row: [10 * row + i for i in range(4)] for row in (6, 1, 3)}
    plan = Plan(decodes=[decoding(row, blocks, mirrored) for row, blocks in held.items()])
    builder.send_decodes(StepInput())  # the step before, of which nothing may be left
    builder.send_decodes(StepBuilder(longest_first=False).build(plan))
    batch, tokens = builder.decode_batch(size), builder.begin_decodes(size)
    padding = size - 3
    assert tokens.tolist() == [660, 110, 330] + [800] * padding
    assert batch.attention[0].rows.tolist() == [6, 1, 3] + [8] * padding
    assert batch.attention[0].positions.tolist() == [60, 10, 30] + [-1] * padding
    known = {row: [-5] * mirrored + blocks[mirrored:] + [-5, -5] for row, blocks in held.items()}
    assert builder._tables[0].tolist() == [known.get(row, [-5] * 6) for row in range(9)]
    assert all(sequence.tables[0].mirrored == 4 and not sequence.stale for sequence in plan.decodes)
