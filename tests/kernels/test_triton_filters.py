"""Top-k, top-p and min-p without sorting, against their definitions in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from server.continuous_batching.kernels.triton_filters import exclude
from tests.kernels.conftest import HALF

# (temperature, top-k, top-p, min-p); zeros for what is off
OPTIONS = [
    (1.0, 5, 0.0, 0.0), (0.7, 0, 0.9, 0.0), (1.5, 0, 0.0, 0.1), (1.0, 50, 0.8, 0.05), (1.0, 10**6, 0.5, 0.0),
    (1.0, 1, 0.99, 0.0), (0.8, 0, 0.0, 0.0), (0.0, 0, 0.0, 0.0), (30.0, 0, 0.999, 0.0), (1.0, 0, 1e-9, 0.0),
    (1e-3, 40, 0.95, 0.5), (1.0, 3000, 0.0, 0.0),
]  # fmt: skip


def kept(scores: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """bool [vocab]: what may be drawn by float64 `scores`; of equal ones at a border, all."""
    scores = scores / (temperature or 1.0)
    keep = torch.ones_like(scores, dtype=torch.bool)
    if top_k:
        keep &= scores >= scores.topk(min(top_k, len(scores))).values[-1]
    if top_p:
        weights = torch.where(keep, (scores - scores.max()).exp(), 0.0)
        values, line = scores.unique(return_inverse=True)
        of_value = torch.zeros_like(values).index_add_(0, line, weights)
        above = of_value.sum() - of_value.cumsum(0)
        keep &= (above < top_p * weights.sum())[line]
    if min_p:
        keep &= scores >= scores.max() + math.log(min_p)
    return keep


def filtered(logits: Tensor, options: list[tuple[float, int, float, float]], rows: list[int]) -> Tensor:
    """`logits` with line i filtered by the options of row ``rows[i]``."""
    temperatures, *limits = torch.tensor(options, device=logits.device).T.float().contiguous()
    result = logits.clone()
    exclude(result, torch.tensor(rows, dtype=torch.int32, device=logits.device), temperatures, *limits)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_what_is_kept(device: torch.device, dtype: torch.dtype) -> None:
    """Scores of 16 bits are equal in many places, and all equal ones stay or go together."""
    torch.manual_seed(3)
    logits = (3 * torch.randn(len(OPTIONS), 5003, device=device)).to(dtype)
    logits[4, 100:4000] = float("-inf")
    rows = torch.randperm(len(OPTIONS)).tolist()
    result = filtered(logits, OPTIONS, rows)
    for line, row in enumerate(rows):
        expected = kept(logits[line].double().cpu(), *OPTIONS[row])
        stays = result[line].cpu() == logits[line].cpu()
        assert torch.equal(stays, expected | logits[line].cpu().isneginf()), OPTIONS[row]
        assert result[line][~stays].isneginf().all()


def test_filters_that_no_line_has(device: torch.device) -> None:
    """Are not looked for: the others work alone."""
    logits = torch.randn(2, 300, device=device)
    rows = torch.arange(2, dtype=torch.int32, device=device)
    ones, off = torch.ones(2, device=device), torch.zeros(2, device=device)
    for top_k, top_p, min_p in ((7 * ones, None, off), (None, 0.6 * ones, off), (None, None, 0.3 * ones)):
        result = logits.clone()
        exclude(result, rows, ones, top_k, top_p, min_p)
        one = [0.0 if limit is None else limit[0].item() for limit in (top_k, top_p, min_p)]
        for line in range(2):
            expected = kept(logits[line].double().cpu(), 1.0, int(one[0]), one[1], one[2])
            assert torch.equal(result[line].isfinite().cpu(), expected)


def test_lines_that_are_not_finite_stay_so(device: torch.device) -> None:
    """Sampling then finds that nothing can be drawn; other lines do not notice."""
    logits = torch.randn(4, 5000, device=device)
    expected = filtered(logits, [(1.0, 50, 0.9, 0.1)] * 4, [0, 1, 2, 3])[3]
    logits[0, 17] = float("nan")
    logits[1] = float("-inf")
    logits[2, 9] = float("inf")
    result = filtered(logits, [(1.0, 50, 0.9, 0.1)] * 4, [0, 1, 2, 3])
    assert not result[:3].softmax(dim=-1).isfinite().any()
    assert torch.equal(result[3], expected)
