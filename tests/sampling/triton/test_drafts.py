"""Drafts on the device: how far they are right, and what their tokens count for."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from server.sampling.triton.drafts import accept
from server.sampling.triton.penalties import count_tokens, penalise
from server.sampling.verification import DraftLines, GpuDrafts, describe_drafts
from server.scheduling.step import StepInput

SLOTS, LENGTH, VOCAB = 7, 40, 300


class Scene:
    """Decodes, some of which have drafts of few different tokens, so that many are right."""

    def __init__(self, seed: int, device: torch.device) -> None:
        rng = random.Random(seed)
        self.rng, self.device = rng, device
        slots = rng.sample(range(SLOTS), 5)
        owners = sorted(rng.sample(range(5), 3), key=lambda _: rng.random())
        lengths = [rng.randint(1, 6) for _ in owners]
        drafted = [rng.randint(0, 1) for _ in range(sum(lengths))]
        self.step = StepInput(
            decode_slots=np.array(slots, np.int32),
            decode_positions=np.array([rng.randint(0, 20) for _ in slots], np.int32),
            draft_lines=np.array(owners, np.int32),
            draft_lengths=np.array(lengths, np.int32),
            draft_tokens=np.array(drafted, np.int32),
        )
        self.slots, self.positions = self.step.sampled()
        self.table = torch.full((SLOTS + 1, LENGTH), 99, dtype=torch.int32, device=device)
        ahead_slots, ahead = self.step.drafted()
        self.table[ahead_slots.tolist(), ahead.tolist()] = torch.tensor(
            drafted, dtype=torch.int32, device=device
        )
        self.drafts = GpuDrafts(*torch.from_numpy(describe_drafts(self.step)).to(device))

    def on_device(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int32)).to(self.device)

    def chosen(self) -> np.ndarray:
        """Tokens of all lines, some of them none."""
        return np.array([self.rng.choice([0, 1, 1, -1]) for _ in self.slots])


@pytest.mark.parametrize("seed", range(12))
def test_tokens_are_right_as_far_as_they_are_chosen(device: torch.device, seed: int) -> None:
    """The table then holds the right ones, and behind them the first that was not foreseen."""
    scene = Scene(seed, device)
    chosen, before = scene.chosen(), scene.table.clone()
    lines = DraftLines.of_step(scene.step)
    assert lines is not None
    expected = np.zeros(len(chosen), np.int64)
    expected[lines.owners] = lines.accepted(chosen)
    accepted = torch.full((len(chosen),), -7, dtype=torch.int32, device=device)
    slots, positions = scene.on_device(scene.slots), scene.on_device(scene.positions)
    accept(scene.on_device(chosen), slots, positions, scene.drafts, scene.table, accepted)
    assert accepted.tolist() == expected.tolist()
    rows, counts = lines.chosen_lines(chosen)
    wanted = before.cpu()
    for owner, (row, count) in enumerate(zip(rows, counts, strict=True)):
        slot, place = scene.slots[owner], scene.positions[owner] + 1
        for offset in range(count):
            wanted[slot, place + offset] = max(int(chosen[row[offset]]), 0)
    assert torch.equal(scene.table.cpu(), wanted)


@pytest.mark.parametrize("seed", range(4))
def test_a_line_is_penalised_for_the_drafted_tokens_before_it(device: torch.device, seed: int) -> None:
    scene = Scene(seed, device)
    logits = 3 * torch.randn(len(scene.slots), VOCAB, device=device)
    counts = torch.randint(0, 3, (SLOTS + 1, VOCAB), device=device).float()
    penalties = torch.zeros(3, SLOTS + 1, device=device)
    penalties[:, :-2] = torch.tensor([1.3, 0.5, 0.25], device=device).unsqueeze(1)
    slots, positions = scene.on_device(scene.slots), scene.on_device(scene.positions)
    together, apart = torch.empty_like(logits), torch.empty_like(logits)
    drafts = scene.drafts.depths, positions, scene.table
    penalise(logits, slots, penalties, counts > 0, counts, together, drafts)
    for line, depth in enumerate(scene.drafts.depths.tolist()):
        own, slot, place = counts.clone(), scene.slots[line], scene.positions[line]
        for token in scene.table[slot, place - depth + 1 : place + 1].tolist():
            own[slot, token] += 1
        only = slice(line, line + 1)
        penalise(logits[only], slots[only], penalties, own > 0, own, apart[only])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_right_of_a_draft_is_counted(device: torch.device, seed: int) -> None:
    scene = Scene(seed, device)
    chosen, lines = scene.chosen(), DraftLines.of_step(scene.step)
    assert lines is not None
    rows, numbers = lines.chosen_lines(chosen)
    wanted = torch.zeros(SLOTS + 1, VOCAB)
    for owner, (row, number) in enumerate(zip(rows, numbers, strict=True)):
        for line in row[:number]:
            if chosen[line] >= 0 and scene.slots[owner] != 3:
                wanted[scene.slots[owner], int(chosen[line])] += 1
    slots, positions = scene.on_device(scene.slots), scene.on_device(scene.positions)
    tokens = scene.on_device(chosen)
    accepted = torch.empty(len(chosen), dtype=torch.int32, device=device)
    accept(tokens, slots, positions, scene.drafts, scene.table, accepted)
    repetition = torch.ones(SLOTS + 1, device=device)
    repetition[3] = 0.0
    counts = torch.zeros(SLOTS + 1, VOCAB, device=device)
    seen = counts > 0
    drafts = scene.drafts.depths, scene.drafts.firsts, accepted
    count_tokens(tokens, slots, repetition, seen, counts, drafts)
    assert torch.equal(counts.cpu(), wanted) and torch.equal(seen, counts > 0)
