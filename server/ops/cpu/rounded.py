"""Weights of floats rounded to codes of 8 bits, where the configuration asks for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from server.layers.codes import CodesForm, CodesMatrix, SmallCodes

BITS = 8
LARGEST_GROUP = 128
"""Inputs that share a scale, at most."""
_MOST = 127


def form_of(inputs: int) -> CodesForm:
    """How a matrix is rounded."""
    return CodesForm(BITS, math.gcd(inputs, LARGEST_GROUP))


def rounded(weight: Tensor) -> CodesMatrix:
    """A matrix [outputs, inputs] with the greatest weight of each group as the greatest code."""
    form = form_of(weight.shape[1])

    def take(outputs: Tensor) -> SmallCodes:
        groups = weight.detach()[outputs].float().view(len(outputs), -1, form.group_size)
        scales = groups.abs().amax(dim=2) / _MOST
        codes = torch.round(groups / scales.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(2))
        return SmallCodes((codes + 128).to(torch.uint8).flatten(1), scales)

    return CodesMatrix(form, len(weight), take)
