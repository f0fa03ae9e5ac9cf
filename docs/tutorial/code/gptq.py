"""Chapter 8: weights as codes with a scale for each group, rounded to the nearest or as GPTQ does."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 64
"""Inputs that share a scale."""


def rounded(weight: Tensor, bits: int, spread: Tensor | None = None) -> Tensor:
    """What codes of `bits` bits stand for, where `weight` [outputs, inputs] was.

    Args:
        spread: how columns make up for each other's errors, as `made_up` has it; None: each weight goes to
            the nearest code.
    """
    left, middle = weight.double(), 2 ** (bits - 1)
    scales = left.unflatten(1, (-1, GROUP)).abs().amax(-1) / (middle - 0.5)
    for i in range(weight.shape[1]):
        scale = scales[:, i // GROUP]
        code = (left[:, i] / scale + middle).round().clamp(0, 2**bits - 1)
        error = left[:, i] - (code - middle) * scale
        if spread is None:
            left[:, i] -= error
        else:
            left[:, i:] -= error[:, None] * spread[i, i:]
    return left.float()


def made_up(inputs: Tensor) -> Tensor:
    """[inputs, inputs]: by how much a column's error is taken off the columns behind it.

    Args:
        inputs: [n, inputs], what the layer sees.
    """
    seen = inputs.double().T @ inputs.double()
    seen.diagonal().add_(0.01 * seen.diagonal().mean())
    upper = torch.linalg.cholesky(torch.linalg.inv(seen), upper=True)
    return upper / upper.diagonal()[:, None]
