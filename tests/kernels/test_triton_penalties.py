"""Bias and penalties in one kernel, against their definitions in float64."""

from __future__ import annotations

import pytest
import torch

from server.continuous_batching.kernels.triton_penalties import History, penalise
from tests.kernels.conftest import HALF

ROWS, VOCAB = 6, 5003


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("penalised", [False, True])
def test_each_line_by_its_own_row(
    device: torch.device, dtype: torch.dtype, biased: bool, penalised: bool
) -> None:
    torch.manual_seed(1)
    logits = (3 * torch.randn(4, VOCAB, device=device)).to(dtype)
    bias = torch.randn(ROWS, VOCAB, device=device)
    counts = torch.randint(0, 3, (ROWS, VOCAB), device=device).float()
    seen = (counts > 0) | (torch.rand(ROWS, VOCAB, device=device) < 0.3)
    options = torch.zeros(4, ROWS, device=device)
    options[0, 1] = options[0, 4] = 1.0  # biased
    options[1:, 4] = torch.tensor([1.3, 0.5, 0.25])
    options[1:, 2] = torch.tensor([1.0, -0.5, 0.0])
    rows = [4, 0, 2, 1]
    placed = torch.tensor(rows, dtype=torch.int32, device=device)
    history, room = History(seen, counts) if penalised else None, torch.full((5, VOCAB), -7.0, device=device)
    result = penalise(logits, placed, options, bias if biased else None, history, room)
    assert (room[4] == -7.0).all(), "there are four lines"
    expected = logits.double()
    for line, row in enumerate(rows):
        if biased and options[0, row]:
            expected[line] += bias[row]
        repetition, frequency, presence = options[1:, row].tolist()
        if penalised and repetition:
            score = expected[line]
            repeated = torch.where(score < 0, score * repetition, score / repetition)
            score = torch.where(seen[row], repeated, score)
            expected[line] = score - counts[row] * frequency - (counts[row] > 0) * presence
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)
