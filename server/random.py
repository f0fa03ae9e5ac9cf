"""Random numbers as a pure function of (seed, answer, position).

A counter-based generator: no state, so that a request draws the same numbers alone, in any batch,
after being swapped out or recomputed, and on another server. The mixer is SplitMix64 (Steele, Lea
and Flood, OOPSLA 2014), computed in int64 whose overflow wraps.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed integer
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def uniform(seed: Tensor, *counters: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), float64, of the broadcast shape of the int64 arguments."""
    state = _mix(seed + _GOLDEN)
    for counter in counters:
        state = _mix(state + (counter + 1) * _GOLDEN)
    return (_shift(state, 12).to(torch.float64) + 0.5) * 2.0**-52
