"""Whether sampled tokens are those that their requests' own noise points at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from protocol.generation import GenerationConfig
from server.sampling.random import gumbel


@torch.inference_mode()
def worst_miss(
    model: Any,
    prompts: Sequence[list[int]],
    configs: Sequence[GenerationConfig],
    answers: Sequence[list[int]],
) -> float:
    """How far, at most, the perturbed score of a token is below the greatest at its place; 0: all hit.

    A token drawn with its own noise misses by rounding only, alone and in any batch; one drawn with
    another's misses by any number.

    Args:
        model: transformers' model, on the CPU.
        configs: sampling by temperature alone.
        answers: first answer to each of `prompts`.
    """
    worst = 0.0
    for prompt, config, answer in zip(prompts, configs, answers, strict=True):
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
        positions = torch.arange(len(prompt), len(prompt) + len(answer))
        noise = gumbel(torch.full_like(positions, config.seed), 0 * positions, positions, logits.shape[1])
        perturbed = logits / config.temperature + noise
        chosen = perturbed.gather(1, torch.tensor(answer)[:, None])[:, 0]
        worst = max(worst, (perturbed.max(dim=1).values - chosen).max().item())
    return worst
