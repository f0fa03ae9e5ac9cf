"""The prompts of a package as one tensor, padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protocol.generation import GenerationConfig


@dataclass(slots=True)
class Prompt:
    """One request of a package."""

    token_ids: list[int]
    config: GenerationConfig
    cancelled: Callable[[], bool] = lambda: False
    """Asked at every step: is the answer not wanted any more?"""
    shown_markers: str | None = ""
    """As for `server.api.service.Job`."""

    @property
    def rows(self) -> int:
        """Rows it takes in the tensor: one for each sample; beams are made by `generate`."""
        return 1 if self.config.num_beams > 1 else self.config.num_choices


class PaddedPrompts:
    """Tensors over the rows of a package; all of shape [rows] but the first two.

    Args:
        prompts: at least one; a prompt with several samples has a row for each.
        pad_token_id: fills the left of shorter prompts; masked, so any id will do.
        device: where the tensors are made.
    """

    def __init__(self, prompts: Sequence[Prompt], pad_token_id: int, device: torch.device) -> None:
        self.rows = [prompt for prompt in prompts for _ in range(prompt.rows)]
        self.width = max(len(prompt.token_ids) for prompt in prompts)
        gaps = [self.width - len(prompt.token_ids) for prompt in self.rows]
        ids = [[pad_token_id] * gap + row.token_ids for gap, row in zip(gaps, self.rows, strict=True)]
        self.input_ids = torch.tensor(ids, device=device)  # [rows, width]
        self.padding = torch.tensor(gaps, device=device)
        columns = torch.arange(self.width, device=device)
        self.attention_mask = (columns >= self.padding.unsqueeze(1)).long()  # [rows, width]
        self.seeds = torch.tensor([row.config.seed for row in self.rows], device=device)
        answers = [i for prompt in prompts for i in range(prompt.rows)]
        self.answers = torch.tensor(answers, device=device)

    @staticmethod
    def of_rows(values: Tensor, input_ids: Tensor) -> Tensor:
        """`values` [rows] for each row of `input_ids`, which has more where beams are searched."""
        return values.repeat_interleave(input_ids.shape[0] // values.shape[0])
