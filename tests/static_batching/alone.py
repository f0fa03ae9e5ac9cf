"""Prompts of a package, and what transformers answers to each alone and unpadded."""

from __future__ import annotations

from typing import Any

import torch

LENGTHS = [1, 17, 4, 40, 9, 4, 23]
PROMPTS = [[(7 * i + 13 * k) % 500 + 3 for i in range(n)] for k, n in enumerate(LENGTHS)]


def alone(reference: Any, prompt: list[int], **options: Any) -> list[list[int]]:
    """New tokens of each sequence that transformers returns, padding cut off."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "pad_token_id": 2, "eos_token_id": 1} | options
    output = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return [[token for token in row if token != 2] for row in output[:, len(prompt) :].tolist()]
