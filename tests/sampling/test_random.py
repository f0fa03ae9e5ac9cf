"""The noise: the same integers everywhere, and what is made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import gumbel_r, kstest

from server.ops.cpu.build import NativeError, build
from server.ops.cpu.library import NativeLibrary
from server.ops.cpu.variants import Variant
from server.sampling.choice import choose_by_torch
from server.sampling.random import LEAST_NOISE, MOST_NOISE, gumbel, philox, random_words
from tests.builds import BUILDS

# of Random123, the library of the generator's authors: (counter, key) → words, with seven rounds
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
    ),
]


def words(seeds: list[int], answers: list[int], positions: list[int], vocab: int) -> torch.Tensor:
    return random_words(*(torch.tensor(values) for values in (seeds, answers, positions)), vocab)


def noise(seeds: torch.Tensor, positions: torch.Tensor, vocab: int) -> np.ndarray:
    return gumbel(seeds, torch.zeros_like(seeds), positions, vocab).numpy()


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_the_generator_is_the_published_one(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    k0, k1 = (torch.tensor([word]) for word in key)
    assert tuple(int(word) for word in philox((c0, c1, c2, c3), (k0, k1))) == expected


def test_each_token_has_the_word_that_the_definition_gives_it() -> None:
    """And never another: a stream may be continued by a server of another version."""
    seed, answer, position, vocab = 2**62 + 12345, 3, 777, 150
    (line,) = words([seed], [answer], [position], vocab).tolist()
    for token in (0, 15, 16, 63, 64, 149):
        counter = (token // 64 * 16 + token % 16, position, answer, 0)
        c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
        k0, k1 = torch.tensor([seed & 0xFFFFFFFF]), torch.tensor([seed >> 32])
        assert line[token] == int(philox((c0, c1, c2, c3), (k0, k1))[token // 16 % 4])


def test_whatever_differs_gives_other_words() -> None:
    kinds = words([5, 6, 5 + 2**40, 5, 5], [0, 0, 0, 1, 0], [9, 9, 9, 9, 10], 1000)
    assert len(torch.unique(kinds)) > 4990, "five lines of a thousand words"
    assert torch.equal(words([5], [0], [9], 40)[0], kinds[0, :40]), "whatever the vocabulary"


def test_the_noise_is_gumbel_and_independent() -> None:
    numbers = noise(torch.arange(100), torch.arange(100) % 7, 200)
    assert kstest(numbers.ravel(), gumbel_r.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.03
    by_position = noise(torch.full((100,), 3), torch.arange(100), 200)
    assert kstest(by_position.ravel(), gumbel_r.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(by_position[:-1].ravel(), by_position[1:].ravel())[0, 1]) < 0.03


def test_the_noise_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def extremes(*_: object) -> torch.Tensor:
        return torch.tensor([[0, 2**32 - 1]])

    monkeypatch.setattr("server.sampling.random.random_words", extremes)
    ((most, least),) = noise(torch.zeros(1), torch.zeros(1), 2).tolist()
    assert most == pytest.approx(33 * math.log(2)) and most < MOST_NOISE
    assert least == pytest.approx(-math.log(33 * math.log(2))) and least > LEAST_NOISE


@pytest.mark.parametrize("variant", BUILDS)
def test_every_build_of_the_kernel_chooses_as_the_reference(variant: Variant) -> None:
    """Vocabularies of all remainders, lines of all kinds, scores that are not finite."""
    try:
        library = NativeLibrary(build(variant), variant)
    except NativeError as error:
        pytest.skip(str(error))
    dice = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    for vocab in (1, 17, 64, 500, 20_001):
        scores = 3 * torch.randn(40, vocab, generator=generator)
        scores[torch.rand(scores.shape, generator=generator) < 0.1] = float("-inf")
        scores[20:] = scores[20:].round()  # so that several are the greatest
        if vocab > 100:
            scores[0, 3], scores[1, 9], scores[2], scores[3] = math.nan, math.inf, -math.inf, -math.inf
            scores[3, 60] = -3.0
        temperatures = np.where(dice.random(40) < 0.3, 0.0, 2 * dice.random(40) + 0.01).astype(np.float32)
        numbers = [dice.integers(0, most, 40) for most in (2**63 - 1, 128, 10**6)]
        chosen = library.choose(scores, temperatures, *numbers)
        assert torch.equal(chosen, choose_by_torch(scores, temperatures, *numbers))
        if vocab > 100:
            assert chosen[:4].tolist() == [-1, -1, -1, 60]
