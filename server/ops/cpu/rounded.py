"""Weights of floats rounded to codes of 8 bits, where the configuration asks for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from server.layers.codes import CodesForm, SmallCodes

BITS = 8
LARGEST_GROUP = 128
"""Inputs that share a scale, at most."""
_MOST = 127


def form_of(inputs: int) -> CodesForm:
    """How a matrix is rounded."""
    return CodesForm(BITS, math.gcd(inputs, LARGEST_GROUP))


def rounded(weight: Tensor) -> SmallCodes:
    """A matrix [outputs, inputs] with the greatest weight of each group as the greatest code."""
    form = form_of(weight.shape[1])
    groups = weight.detach().float().view(len(weight), -1, form.group_size)
    scales = groups.abs().amax(dim=2) / _MOST
    codes = torch.round(groups / scales.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(2))
    return SmallCodes(form, (codes + 128).to(torch.uint8).flatten(1), scales)
