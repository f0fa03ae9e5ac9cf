"""Masks leave the scores of what they allow, and exclude all else, whoever applies them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from server.sampling.choice import Choose, choose_by_torch, choose_function
from server.sampling.masks import Exclude, exclude_by_torch, exclude_function

CPU = torch.device("cpu")


@pytest.mark.parametrize("exclude", [exclude_by_torch, exclude_function(CPU)], ids=["torch", "chosen"])
@pytest.mark.parametrize("vocab", [1, 31, 64, 1000, 40_007])
def test_masks_exclude_what_they_do_not_allow(exclude: Exclude, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    allowed = rng.random((3, vocab)) < np.array([[0.5], [0.001], [1.0]])
    allowed[:, 32:48] = False  # half a word
    masks = np.zeros((3, -(-vocab // 32) + 1), np.int32)  # a word too many
    packed = np.packbits(allowed, axis=1, bitorder="little")
    masks.view(np.uint8)[:, : packed.shape[1]] = packed
    scores = torch.randn(5, vocab)
    expected = scores.clone()
    at, rows = np.array([4, 0, 2]), np.array([1, 0, 2])
    for line, row in zip(at, rows, strict=True):
        expected[line, torch.from_numpy(~allowed[row])] = float("-inf")
    exclude(scores, at, masks, rows)
    assert torch.equal(scores, expected)


def test_a_draw_among_few_allowed_tokens_is_the_same_in_every_form() -> None:
    scores = torch.full((6, 5000), float("-inf"))
    for line in range(5):  # the last line has none
        scores[line, torch.randperm(5000)[: 1 + line * 7]] = torch.randn(1 + line * 7)
    numbers = (np.full(6, 0.7, np.float32), np.arange(6), np.zeros(6, np.int64), np.arange(6) + 9)
    chosen = choose_function(CPU)[0](scores, *numbers)
    assert torch.equal(chosen, choose_by_torch(scores, *numbers))
    assert chosen[5] == -1 and (chosen[:5] >= 0).all()


@pytest.mark.parametrize("choose", [choose_by_torch, choose_function(CPU)[0]], ids=["torch", "chosen"])
@pytest.mark.parametrize("vocab", [31, 64, 1000, 40_007])
def test_a_choice_under_masks_is_that_among_what_they_allow(choose: Choose, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    allowed = rng.random((4, vocab)) < np.array([[0.5], [0.002], [1.0], [0.0]])
    allowed[1, rng.integers(vocab)] = True
    packed = np.packbits(allowed, axis=1, bitorder="little")
    masks = np.zeros((4, -(-vocab // 32)), np.int32)
    masks.view(np.uint8)[:, : packed.shape[1]] = packed
    rows = np.array([1, 0, -1, 2, 3, 0, 1])
    scores = torch.randn(7, vocab)
    scores[0, torch.from_numpy(~allowed[1])] = float("nan")  # whatever stands where nothing may be chosen
    expected = scores.clone()
    exclude_by_torch(expected, np.flatnonzero(rows >= 0), masks, rows[rows >= 0])
    temperatures = np.array([0.7, 0.7, 0.7, 0.0, 0.7, 0.0, 0.0], np.float32)
    numbers = (temperatures, np.arange(7), np.zeros(7, np.int64), np.arange(7) + 9)
    chosen = choose(scores, *numbers, masks, rows)
    assert torch.equal(chosen, choose_by_torch(expected, *numbers))
    assert chosen[4] == -1 and (chosen[[0, 1, 2, 3, 5, 6]] >= 0).all()
