"""The noise of a token, as a pure function of (seed, answer, position, token id).

A token is drawn as the greatest of score / temperature + g over the vocabulary, with Gumbel noise
g = -log(-log(u)): that is a sample of softmax(score / temperature) (Gumbel, 1954; Maddison et al., 2014).
The numbers u come from a counter-based generator, Philox-4x32 with seven rounds, the fewest that pass
BigCrush (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). It has no state, so a
request draws the same noise alone, in any batch, after being swapped out or recomputed, and elsewhere.

- Key: the seed, 64 bits.
- Counter: (c, position of the token to be chosen, number of the answer, 0), 32 bits each.
- One counter gives four words. Of a block of 64 tokens, token t has word ``t // 16 % 4`` of counter
  ``t // 64 * 16 + t % 16``: sixteen counters side by side give the words of sixteen tokens side by side.
- A word k gives u = 1 - (k + 0.5) / 2**32, which is never 0 or 1. So g lies between `LEAST_NOISE` and
  `MOST_NOISE`, and where u is near 1 and g large there are enough values for tokens of small probability.

The kernels in C++ (``server/ops/cpu/src/choose.h``) and Triton (``server/sampling/triton/sampling.py``)
compute the same integers; these functions are their reference, and stand in where there is no compiler.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 7
LEAST_NOISE, MOST_NOISE = -3.13, 22.88

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random words for each counter.

    Args:
        counter, key: int64 tensors of 32-bit words, which are broadcast.

    Returns:
        Four int64 tensors of 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # int64 overflows in the first product's highest bit, which the shift and the mask put right
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((second >> 32) & _WORD) ^ c1 ^ k0, second & _WORD
        c2, c3 = ((first >> 32) & _WORD) ^ c3 ^ k1, first & _WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def random_words(seeds: Tensor, answers: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """int64 [rows, vocab]: a 32-bit word for each token.

    Args:
        seeds, answers, positions: int64 [rows]; the position is that of the token to be chosen.
    """
    blocks = -(-vocab_size // 64)
    zero = torch.zeros(1, dtype=torch.int64, device=seeds.device)
    counters = torch.arange(blocks * 16, device=seeds.device).unsqueeze(0)
    key = (seeds & _WORD).unsqueeze(1), ((seeds >> 32) & _WORD).unsqueeze(1)
    words = philox((counters, (positions & _WORD).unsqueeze(1), (answers & _WORD).unsqueeze(1), zero), key)
    by_block = torch.stack([word.view(-1, blocks, 16) for word in words], dim=2)
    return by_block.reshape(-1, blocks * 64)[:, :vocab_size]


def gumbel(seeds: Tensor, answers: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise float32 [rows, vocab]; arguments as for `random_words`."""
    words = random_words(seeds, answers, positions, vocab_size).to(torch.float64)
    return -(-torch.log1p((words + 0.5).mul_(-(2.0**-32)))).log_().to(torch.float32)
