"""Whether sampled tokens are those that their requests' own random numbers point at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from protocol.generation import GenerationConfig
from server.random import uniform


@torch.inference_mode()
def worst_miss(
    model: Any,
    prompts: Sequence[list[int]],
    configs: Sequence[GenerationConfig],
    answers: Sequence[list[int]],
) -> float:
    """The greatest distance of a number from the step of its token in the distribution's sum; 0: all hit.

    A token drawn at its own number misses by rounding only, alone and in any batch; one drawn at
    another's number misses by anything up to 1.

    Args:
        model: transformers' model, on the CPU.
        configs: sampling by temperature alone.
        answers: first answer to each of `prompts`.
    """
    worst = 0.0
    for prompt, config, answer in zip(prompts, configs, answers, strict=True):
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
        ends = (logits / config.temperature).softmax(-1).cumsum(-1)
        tokens = torch.tensor(answer)
        high = ends.gather(1, tokens[:, None])[:, 0]
        low = torch.where(tokens > 0, ends.gather(1, (tokens - 1).clamp(min=0)[:, None])[:, 0], 0.0)
        positions = torch.arange(len(prompt), len(prompt) + len(answer))
        numbers = uniform(torch.tensor(config.seed), torch.tensor(0), positions)
        worst = max(worst, (low - numbers).max().item(), (numbers - high).max().item())
    return worst
