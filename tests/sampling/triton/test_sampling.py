"""Tokens drawn by the kernels: those that the reference draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from server.sampling.choice import choose_by_torch
from server.sampling.random import gumbel
from server.sampling.triton.sampling import FAILED
from tests.ops.triton.checks import HALF
from tests.sampling.triton.draws import draw, options_of


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("vocab", [40, 9001])
def test_the_best_perturbed_score(device: torch.device, dtype: torch.dtype, vocab: int) -> None:
    """To within the rounding of the kernel's logarithms, where two are as good as equal."""
    temperatures = [0.0, 0.6, 1.0, 2.0, 1.0, 0.9, 1e-3]
    logits = (torch.randn(7, vocab, device=device) * 3).to(dtype)
    slots, positions, by_slot, seeds, answers = options_of(device, temperatures)
    table = torch.full((7, 20), -7, dtype=torch.int32, device=device)
    tokens = draw(logits, slots, positions, by_slot, seeds, answers, table).long()
    assert tokens[0] == logits[0].argmax()
    lines = slots.long()
    noise = gumbel(seeds[lines], answers[lines], positions.long() + 1, vocab)
    perturbed = logits.double() / by_slot[lines].double().unsqueeze(1) + noise
    best = perturbed[1:].max(dim=1).values
    torch.testing.assert_close(perturbed[1:].gather(1, tokens[1:, None])[:, 0], best, rtol=1e-6, atol=1e-5)
    assert torch.equal(table[lines, positions.long() + 1].long(), tokens)
    assert (table == -7).sum() == table.numel() - 7


def test_tokens_are_those_of_a_cpu(device: torch.device) -> None:
    """Over many lines: ties within rounding are too rare to show."""
    logits = 3 * torch.randn(100, 700, device=device)
    numbers = torch.arange(100, device=device)
    by_slot, table = torch.full((100,), 0.8, device=device), torch.zeros((100, 102), dtype=torch.int32)
    slots = numbers.int()
    tokens = draw(logits, slots, slots, by_slot, numbers * 987_654_321, numbers % 5, table.to(device))
    lines = np.arange(100)
    temperatures = np.full(100, 0.8, np.float32)
    expected = choose_by_torch(logits.cpu(), temperatures, lines * 987_654_321, lines % 5, lines + 1)
    assert tokens.tolist() == expected.tolist()


def test_slots_of_beams_get_no_token(device: torch.device) -> None:
    slots, positions, *others = options_of(device, [0.0, -1.0, 0.7])
    table = torch.zeros((3, 20), dtype=torch.int32, device=device)
    tokens = draw(torch.randn(3, 100, device=device), slots, positions, *others, table).tolist()
    assert tokens[1] == FAILED and FAILED not in (tokens[0], tokens[2])


def test_a_line_is_drawn_alike_alone_and_among_others(device: torch.device) -> None:
    """Equal scores give equal tokens, to the bit, whatever else is in the batch and wherever the line is."""
    logits = torch.randn(6, 9001, device=device) * 3
    slots, positions, *options = options_of(device, [0.7, 1.0, 0.0, 1.3, 1.0, 0.7])
    table = torch.zeros((6, 20), dtype=torch.int32, device=device)
    together = draw(logits, slots, positions, *options, table)
    alone = [draw(logits[[i]], slots[[i]], positions[[i]], *options, table) for i in range(6)]
    assert torch.equal(torch.cat(alone), together)
    moved = torch.tensor([4, 0, 5, 2, 1, 3], device=device)
    assert torch.equal(draw(logits[moved], slots[moved], positions[moved], *options, table), together[moved])


def test_sampling_reports_scores_that_are_not_finite(device: torch.device) -> None:
    logits = torch.randn(4, 5000, device=device)
    logits[0, 17] = float("nan")
    logits[1] = float("-inf")
    logits[2] = float("-inf")
    logits[2, 4999] = -3.0  # the only token left
    slots, positions, by_slot, seeds, answers = options_of(device, [1.0, 0.0, 1.0, 0.0])
    table = torch.zeros((4, 20), dtype=torch.int32, device=device)
    tokens = draw(logits, slots, positions, by_slot, seeds, answers, table).tolist()
    assert tokens == [FAILED, FAILED, 4999, int(logits[3].argmax())]
    assert table.min() >= 0  # whatever happens, the next step's input is a token
