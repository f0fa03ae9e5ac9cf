"""Top-k, top-p and min-p without sorting, against their definitions in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from server.sampling.random import gumbel
from server.sampling.triton.filters import find_bounds
from server.sampling.triton.sampling import FAILED
from tests.ops.triton.checks import HALF
from tests.sampling.triton.draws import draw, options_of

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
    """bool [lines, vocab]: what the filters of row ``rows[i]`` keep of line i."""
    by_row = torch.tensor(options, device=logits.device).T.float().contiguous()
    placed = torch.tensor(rows, dtype=torch.int32, device=logits.device)
    room = torch.full(logits.shape, float("nan"), device=logits.device)
    bounds = find_bounds(logits, placed, by_row, room)
    return ~(bounds.peaks[:, None] - logits.float() > bounds.borders[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_what_is_kept(device: torch.device, dtype: torch.dtype) -> None:
    """Scores of 16 bits are equal in many places, and all equal ones stay or go together."""
    torch.manual_seed(3)
    logits = (3 * torch.randn(len(OPTIONS), 5003, device=device)).to(dtype)
    logits[4, 100:4000] = float("-inf")
    rows = torch.randperm(len(OPTIONS)).tolist()
    stays = filtered(logits, OPTIONS, rows).cpu()
    for line, row in enumerate(rows):
        scores = logits[line].double().cpu()
        drawable = scores.isfinite()  # the others may be kept or not
        assert torch.equal(stays[line] & drawable, kept(scores, *OPTIONS[row]) & drawable), OPTIONS[row]


@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_flat_and_steep_distributions(device: torch.device, scale: float) -> None:
    """Of the flat one, much has to be searched; of the steep one, all but few tokens share a bin."""
    torch.manual_seed(5)
    logits = scale * torch.randn(4, 20_011, device=device)
    options = [(1.0, 0, 0.9, 0.0), (0.7, 700, 0.5, 0.0), (1.0, 12_345, 0.0, 0.0), (1.2, 9, 0.999999, 0.0)]
    stays = filtered(logits, options, [0, 1, 2, 3]).cpu()
    for line in range(4):
        assert torch.equal(stays[line], kept(logits[line].double().cpu(), *options[line])), options[line]


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_few_scores_are_left_to_search(device: torch.device, temperature: float) -> None:
    """With top-k, whatever the temperature: the search takes time by their number."""
    torch.manual_seed(8)
    logits = torch.cat((torch.full((1, 1), 30.0), 2.5 * torch.randn(1, 40_000)), dim=1).to(device)
    room = torch.full(logits.shape, float("nan"), device=device)
    rows = torch.zeros(1, dtype=torch.int32, device=device)
    find_bounds(logits, rows, torch.tensor([[temperature], [50], [0.9], [0.0]], device=device), room)
    assert 0 < int(room.isfinite().sum()) < 100


def test_scores_that_are_all_equal(device: torch.device) -> None:
    """Stay together, whatever the filters."""
    logits = torch.full((3, 5000), 2.5, device=device)
    assert filtered(logits, [(1.0, 4, 0.0, 0.0), (1.0, 0, 0.1, 0.0), (1.0, 7, 0.3, 0.9)], [0, 1, 2]).all()


def test_lines_that_are_not_finite_stay_so(device: torch.device) -> None:
    """Sampling then finds that nothing can be drawn; other lines do not notice."""
    options = [(1.0, 50, 0.9, 0.1)] * 4
    logits = torch.randn(4, 5000, device=device)
    expected = filtered(logits, options, [0, 1, 2, 3])[3]
    logits[0, 17] = float("nan")
    logits[1] = float("-inf")
    logits[2, 9] = float("inf")
    stays = filtered(logits, options, [0, 1, 2, 3])
    assert stays[0, 17] and stays[2, 9]
    assert torch.equal(stays[3], expected)
    by_row = torch.tensor(options, device=device).T.contiguous()
    rows, positions, _, seeds, answers = options_of(device, [1.0] * 4)
    bounds = find_bounds(logits, rows, by_row, torch.empty_like(logits))
    table = torch.zeros((4, 20), dtype=torch.int32, device=device)
    tokens = draw(logits, rows, positions, by_row[0], seeds, answers, table, bounds=bounds).tolist()
    assert tokens[:3] == [FAILED] * 3 and expected[tokens[3]]


def test_only_what_is_kept_is_drawn(device: torch.device) -> None:
    """The best perturbed score of what the filters leave."""
    torch.manual_seed(2)
    logits = 2 * torch.randn(6, 9001, device=device)
    rows, positions, temperatures, seeds, answers = options_of(device, [0.7, 1.0, 0.0, 1.3, 1.0, 0.7])
    limits = torch.tensor([(0, 0, 0), (40, 0, 0), (0, 0.6, 0), (0, 0, 0.2), (90, 0.8, 0.01), (0, 0.95, 0)])
    by_row = torch.cat((temperatures[None], limits.T.to(device))).contiguous()
    bounds = find_bounds(logits, rows, by_row, torch.empty_like(logits))
    table = torch.zeros((6, 20), dtype=torch.int32, device=device)
    tokens = draw(logits, rows, positions, temperatures, seeds, answers, table, bounds=bounds).tolist()
    for line, row in enumerate(rows.tolist()):
        temperature, top_k, top_p, min_p = by_row[:, row].tolist()
        scores = logits[line].double().cpu()
        if not temperature:
            assert tokens[line] == int(scores.argmax())
            continue
        keep = kept(scores, temperature, int(top_k), top_p, min_p)
        noise = gumbel(seeds[[row]].cpu(), answers[[row]].cpu(), positions[[line]].cpu().long() + 1, 9001)[0]
        perturbed = torch.where(keep, scores / temperature + noise, float("-inf"))
        assert perturbed[tokens[line]] > perturbed.max() - 1e-5
