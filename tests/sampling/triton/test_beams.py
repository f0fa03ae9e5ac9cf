"""Continuations of beams against float64."""

from __future__ import annotations

import pytest
import torch

from server.sampling.triton.beams import best_continuations
from tests.ops.triton.checks import HALF


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(("vocab", "count"), [(50, 2), (9001, 8), (5000, 33), (40_000, 3)])
def test_the_best_of_every_line(device: torch.device, dtype: torch.dtype, vocab: int, count: int) -> None:
    torch.manual_seed(vocab)
    logits = (4 * torch.randn(5, vocab, device=device)).to(dtype)
    running = -10 * torch.rand(5, device=device)
    scores, tokens = best_continuations(logits, running, count)
    expected = logits.double().log_softmax(dim=-1) + running.double()[:, None]
    torch.testing.assert_close(scores.double(), expected.topk(count).values, rtol=0.0, atol=1e-5)
    # the tokens are those of the scores, and each is there once: of equals any will do
    torch.testing.assert_close(expected.gather(1, tokens.long()), scores.double(), rtol=0.0, atol=1e-5)
    assert all(len(set(line)) == count for line in tokens.tolist())


def test_equal_scores_are_all_found(device: torch.device) -> None:
    """The first of them by token."""
    logits = torch.zeros(1, 30_000, device=device)
    _, tokens = best_continuations(logits, torch.zeros(1, device=device), 4)
    assert tokens.tolist() == [[0, 1, 2, 3]]


def test_scores_that_are_not_finite(device: torch.device) -> None:
    """They can be told from others, and what remains of a line is found."""
    logits = torch.randn(6, 9001, device=device)  # three tiles, in four places
    logits[0, 17] = float("nan")
    logits[1] = float("-inf")
    logits[2, 9] = float("inf")
    logits[3] = float("-inf")
    logits[3, 4999] = 2.0
    logits[5] = float("nan")
    scores, tokens = best_continuations(logits, torch.zeros(6, device=device), 3)
    assert scores[:3].isnan().all()
    assert scores[3].tolist() == [0.0, float("-inf"), float("-inf")]
    assert tokens[3, 0] == 4999
    assert scores[4].isfinite().all()
    assert scores[5].isnan().all()
    assert tokens.min() >= 0 and tokens.max() < 9001
