"""Bias and penalties, a kernel each, against their definitions in float64."""

from __future__ import annotations

import pytest
import torch

from server.sampling.triton.penalties import add_bias, count_tokens, penalise
from tests.ops.triton.checks import HALF

SLOTS, VOCAB = 6, 5003
LINES = [4, 0, 2, 1]
"""The slot of each."""


def slots_of(device: torch.device) -> torch.Tensor:
    return torch.tensor(LINES, dtype=torch.int32, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_each_line_by_the_bias_of_its_own_slot(device: torch.device, dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(4, VOCAB, device=device)).to(dtype)
    bias = torch.randn(SLOTS, VOCAB, device=device)
    is_biased = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0], device=device)
    expected = logits.double()
    for line, slot in enumerate(LINES):
        expected[line] += is_biased[slot] * bias[slot]
    scores = logits if dtype == torch.float32 else torch.empty(4, VOCAB, device=device)
    add_bias(logits, slots_of(device), is_biased, bias, scores)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_each_line_by_the_penalties_of_its_own_slot(device: torch.device, dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(4, VOCAB, device=device)).to(dtype)
    counts = torch.randint(0, 3, (SLOTS, VOCAB), device=device).float()
    seen = (counts > 0) | (torch.rand(SLOTS, VOCAB, device=device) < 0.3)
    penalties = torch.zeros(3, SLOTS, device=device)
    penalties[:, 4] = torch.tensor([1.3, 0.5, 0.25])
    penalties[:, 2] = torch.tensor([1.0, -0.5, 0.0])
    expected = logits.double()
    for line, slot in enumerate(LINES):
        repetition, frequency, presence = penalties[:, slot].tolist()
        if repetition:
            score = expected[line]
            repeated = torch.where(score < 0, score * repetition, score / repetition)
            score = torch.where(seen[slot], repeated, score)
            expected[line] = score - counts[slot] * frequency - (counts[slot] > 0) * presence
    scores = logits if dtype == torch.float32 else torch.empty(4, VOCAB, device=device)
    penalise(logits, slots_of(device), penalties, seen, counts, scores)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=1e-6)


def test_tokens_are_counted_where_there_are_penalties(device: torch.device) -> None:
    counts = torch.zeros(SLOTS, 900, device=device)
    counts[4, 7] = 4.0
    seen = counts > 0
    repetition = torch.tensor([0.0, 1.0, 1.1, 1.1, 1.1, 0.0], device=device)
    tokens = torch.tensor([7, 8, -1, 9], dtype=torch.int32, device=device)
    count_tokens(tokens, slots_of(device), repetition, seen, counts)
    assert counts.nonzero().tolist() == seen.nonzero().tolist() == [[1, 9], [4, 7]]
    assert counts[4, 7] == 5.0 and counts[1, 9] == 1.0
