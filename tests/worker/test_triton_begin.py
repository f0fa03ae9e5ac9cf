"""What a step of decodes begins with: its numbers, its tokens, and what changed in the block tables."""

from __future__ import annotations

import pytest
import torch

from server.layers.weights import EmbeddingRows
from server.scheduling.block_table import BlockTable
from server.scheduling.params import SamplingParams
from server.scheduling.plan import Plan
from server.scheduling.request import Request, Sequence
from server.scheduling.step import StepInput
from server.scheduling.step_builder import StepBuilder
from server.worker.paged_batch import PagedBatchBuilder
from server.worker.triton_begin import begin_decodes


@pytest.mark.parametrize(("size", "news"), [(1, 0), (1, 300), (5, 1), (300, 7)])
def test_what_is_sent_goes_where_told_and_nowhere_else(device: torch.device, size: int, news: int) -> None:
    sections, section, room = 7, 320, 320
    known = torch.randperm(1200, device=device, dtype=torch.int32).view(400, 3)
    tables = torch.full((400, 9), -5, device=device, dtype=torch.int32)
    inputs = torch.full((sections + 1, section), -7, device=device, dtype=torch.int32)
    numbers = torch.randint(1000, (sections, section), dtype=torch.int32)
    numbers[0] = torch.randperm(400)[:section]
    numbers[1] = numbers[0] % 4 - 1
    places, blocks = torch.randperm(tables.numel(), dtype=torch.int32)[:room], torch.arange(room).int() + 1000
    sent = torch.cat((numbers.view(-1), places, blocks))
    sent = sent.pin_memory() if device.type == "cuda" else sent
    expected = inputs.clone()
    expected[:sections, :size] = numbers[:, :size].to(device)
    rows, positions = numbers[0, :size].long(), numbers[1, :size].clamp(min=0).long()
    expected[sections, :size] = known[rows.to(device), positions.to(device)]
    written = tables.clone()
    written.view(-1)[places[:news].long().to(device)] = blocks[:news].to(device)
    begin_decodes(sent, inputs, known, tables, size, news, room)
    assert torch.equal(inputs, expected)
    assert torch.equal(tables, written)


@pytest.mark.parametrize(("size", "news"), [(1, 300), (5, 1), (200, 7)])
@pytest.mark.parametrize(("hidden", "scale"), [(64, 1.0), (96, 3.0), (5120, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_the_embedding_are_those_of_the_tokens(
    device: torch.device, dtype: torch.dtype, size: int, news: int, hidden: int, scale: float
) -> None:
    known = torch.randint(50, (256, 3), device=device, dtype=torch.int32)
    sent = torch.zeros(7 * 256 + 2 * 320, dtype=torch.int32)
    rows, positions = torch.randperm(256)[:size], torch.randint(-1, 3, (size,))
    sent[:size], sent[256 : 256 + size] = rows, positions
    sent[7 * 256 : 7 * 256 + 320] = torch.arange(320)
    sent = sent.pin_memory() if device.type == "cuda" else sent
    inputs, tables = (torch.zeros(8, 256, dtype=torch.int32, device=device) for _ in range(2))
    weight = torch.randint(-31, 32, (50, hidden), device=device).to(dtype)  # products need no rounding
    embedded = torch.full((256, hidden), 7.0, dtype=dtype, device=device)
    rows_of = EmbeddingRows(weight, scale)
    begin_decodes(sent, inputs, known, tables, size, news, 320, rows_of, embedded)
    token_ids = known[rows.to(device), positions.clamp(min=0).to(device)]
    assert torch.equal(inputs[7, :size], token_ids)
    assert torch.equal(embedded[:size], torch.nn.functional.embedding(token_ids, weight) * scale)
    assert (embedded[size:] == 7.0).all()


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
    """With nothing new, a block each as usual, and more news than decodes."""
    known = torch.arange(9, dtype=torch.int32, device=device).view(-1, 1) * 100
    known = known + torch.arange(90, dtype=torch.int32, device=device)
    builder = PagedBatchBuilder(8, 8, 6, 64, 16, known)
    builder._tables.fill_(-5)
    held = {row: [10 * row + i for i in range(4)] for row in (6, 1, 3)}
    plan = Plan(decodes=[decoding(row, blocks, mirrored) for row, blocks in held.items()])
    builder.send_decodes(StepInput(), 8)  # the step before, of which nothing may be left
    builder.send_decodes(StepBuilder(longest_first=False).build(plan), size)
    batch = builder.decode_batch(size, drafted=True)
    padding = size - 3
    assert batch.token_ids.tolist() == [660, 110, 330] + [800] * padding
    assert batch.attention[0].rows.tolist() == [6, 1, 3] + [8] * padding
    assert batch.attention[0].positions.tolist() == [60, 10, 30] + [-1] * padding
    nothing_shared, nothing_drafted = [[0] * size, [1] * size], [[0] * size] * 3
    assert builder._inputs[2:7, :size].tolist() == nothing_shared + nothing_drafted
    known = {row: [-5] * mirrored + blocks[mirrored:] + [-5, -5] for row, blocks in held.items()}
    assert builder._tables[0].tolist() == [known.get(row, [-5] * 6) for row in range(9)]
    assert all(sequence.tables[0].mirrored == 4 and not sequence.stale for sequence in plan.decodes)
