"""Step 2: static batching. One padded rectangle of tokens runs until its last row is done."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from docs.tutorial.steps.model import Llama, attention


@dataclass
class Work:
    """Tokens computed, and how many of them were of use."""

    prompt: int = 0
    padding: int = 0
    decoded: int = 0
    useful: int = 0


def generate(model: Llama, prompts: Seq[list[int]], limits: Seq[int]) -> tuple[list[list[int]], Work]:
    """Greedy answers to `prompts`, each of at most `limits` tokens."""
    rows, width = len(prompts), max(map(len, prompts))
    padding = torch.tensor([[width - len(prompt)] for prompt in prompts])
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    cache: list[Tensor] = [torch.empty(2, rows, 0, model.kv_heads, model.dim)] * model.layers
    answers: list[list[int]] = [[] for _ in prompts]
    done = [False] * rows
    work = Work(prompt=sum(map(len, prompts)), padding=int(padding.sum()))
    for step in range(max(limits)):
        first, last = (0, width) if step == 0 else (width + step - 1, width + step)
        columns = torch.arange(last)
        sees = (columns >= padding[:, None]) & (columns <= columns[first:, None])  # [rows, new, all]
        sees |= columns == columns[first:, None]  # padding sees itself, or its softmax would be 0 / 0

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, sees: Tensor = sees) -> Tensor:
            new = torch.stack((key, value)).view(2, rows, -1, model.kv_heads, model.dim)
            cache[layer] = torch.cat((cache[layer], new), dim=2)
            query = query.view(rows, -1, model.heads, model.dim)
            return attention(query, *cache[layer], sees).flatten(0, 1)

        positions = (columns[first:] - padding).clamp(min=0).flatten()
        ends = torch.arange(1, rows + 1) * (last - first) - 1
        tokens = model.forward(tokens.flatten(), positions, attend, ends).argmax(-1, keepdim=True)
        work.decoded += rows
        for row, token in enumerate(tokens.flatten().tolist()):
            if not done[row]:
                work.useful += 1
                answers[row].append(token)
                done[row] = token == model.eos or len(answers[row]) == limits[row]
        if all(done):
            break
    return answers, work
