"""Filters of random options on random scores of every kind, against their definitions in float64.

Where sums come within rounding of a border the token there may be kept or not.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from server.sampling.triton.filters import find_bounds
from tests.ops.triton.checks import HALF

VOCABULARIES = [1, 2, 17, 511, 2047, 2048, 2049, 5003]
ROUNDING = 3e-6
KINDS = ["plain", "flat", "steep", "few values", "equal", "huge", "few likely", "offset", "tiny", "zeros"]


def scores_of(kind: str, vocab: int, dice: random.Random) -> Tensor:
    """float32 [vocab], some of them -inf at times."""
    noise = torch.randn(vocab)
    scores = {
        "plain": lambda: 3 * noise,
        "flat": lambda: 1e-4 * noise,
        "steep": lambda: 100 * noise,
        "few values": lambda: torch.randint(-3, 3, (vocab,)).float(),
        "equal": lambda: torch.full((vocab,), dice.choice([0.0, -7.5, 3e4])),
        "huge": lambda: 1e4 * noise,
        "few likely": lambda: torch.where(torch.rand(vocab) < 5 / vocab, 20.0, -20.0) + noise,
        "offset": lambda: 1000 + noise,
        "tiny": lambda: 1e-30 * noise,
        "zeros": lambda: 0.0 * noise,  # of both signs
    }[kind]()
    if dice.random() < 0.3:
        excluded = torch.rand(vocab) < dice.choice([0.01, 0.5, 0.999])
        excluded[dice.randrange(vocab)] = False
        scores[excluded] = float("-inf")
    return scores


def options_of(vocab: int, dice: random.Random) -> tuple[float, int, float, float]:
    """(temperature, top-k, top-p, min-p)."""
    return (
        dice.choice([1.0, 0.7, 1.5, 0.1, 1e-3, 1e-6, 30.0, 1e6, 1e-30, 1e30]),
        dice.choice([0, 0, 1, 2, 5, 50, vocab - 1, vocab, vocab + 1, 3000, 10**6, 2**31 - 1]),
        dice.choice([0.0, 0.0, 0.9, 0.5, 0.1, 1e-9, 0.99, 0.999, 0.9999999]),
        dice.choice([0.0, 0.0, 0.0, 0.05, 1e-6, 0.5, 1.0]),
    )


def surely_and_possibly_kept(scores: Tensor, options: list[float]) -> tuple[Tensor, Tensor]:
    """(what has to be kept, what may be), bool [vocab] each, of float32 `scores`."""
    temperature, top_k, top_p, min_p = options
    distances = scores.max() - scores
    surely = torch.ones_like(scores, dtype=torch.bool)
    if top_k:
        surely &= distances <= distances.sort().values[min(int(top_k), len(scores)) - 1]
    possibly = surely.clone()
    if top_p:
        weights = torch.where(surely, (-distances.double() / temperature).exp(), 0.0)
        values, place = distances.unique(return_inverse=True)
        masses = torch.zeros(len(values), dtype=torch.float64).index_add_(0, place, weights)
        above = (masses.cumsum(0) - masses)[place]
        surely &= above < (top_p - ROUNDING) * weights.sum()
        possibly &= above < (top_p + ROUNDING) * weights.sum()
    if min_p:
        border = -temperature * math.log(min_p)
        surely &= distances <= border * (1 - 1e-5)
        possibly &= distances <= border * (1 + 1e-5)
    return surely | (distances == 0.0), possibly | (distances == 0.0)


@pytest.mark.parametrize("seed", range(6))
def test_random_filters(device: torch.device, seed: int) -> None:
    dice = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(8):
        vocab, dtype = dice.choice(VOCABULARIES), dice.choice([torch.float32, HALF])
        kinds = dice.choices(KINDS, k=4)
        logits = torch.stack([scores_of(kind, vocab, dice) for kind in kinds]).to(dtype)
        options = torch.tensor([options_of(vocab, dice) for _ in kinds]).T.float().contiguous()
        rows = torch.arange(4, dtype=torch.int32, device=device)
        room = torch.full(logits.shape, float("nan"), device=device)
        bounds = find_bounds(logits.to(device), rows, options.to(device), room)
        for line, kind in enumerate(kinds):
            scores = logits[line].float()
            if not scores.max().isfinite():  # more than 16 bits hold
                continue
            wanted = options[:, line].tolist()
            kept = ~(bounds.peaks[line].cpu() - scores > bounds.borders[line].cpu())
            if not any(wanted[1:]):
                assert kept.all(), "no filter"
                continue
            surely, possibly = surely_and_possibly_kept(scores, wanted)
            drawable = scores.isfinite()  # the others may be kept or not
            assert not (surely & drawable & ~kept).any(), (kind, vocab, dtype, wanted)
            assert not (kept & drawable & ~possibly).any(), (kind, vocab, dtype, wanted)
