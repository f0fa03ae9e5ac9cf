"""What tests of the sampling kernels share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from server.sampling.triton.sampling import sample


def options_of(
    device: torch.device, temperatures: list[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(slots, positions, temperatures, seeds, answers): the lines take the slots backwards."""
    count = len(temperatures)
    slots = torch.arange(count - 1, -1, -1, dtype=torch.int32, device=device)
    positions = torch.arange(7, 7 + count, dtype=torch.int32, device=device)
    by_slot = torch.tensor(temperatures[::-1], dtype=torch.float32, device=device)
    seeds = torch.arange(count, device=device) * 1_234_567_891 - 5
    return slots, positions, by_slot, seeds, torch.arange(count, device=device) % 3


def draw(logits: Tensor, *others: Tensor, **options: Any) -> Tensor:
    """What `sample` chooses, given all its arguments but the place for the tokens: int32 [lines]."""
    tokens = torch.full((len(logits),), -7, dtype=torch.int32, device=logits.device)
    sample(logits, *others, tokens, **options)
    return tokens
