"""Triton kernels are tested on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from server.continuous_batching.kernels.triton_sampling import sample
from tests.continuous_batching.reference import Reference
from tests.models import tiny_llama

# the interpreter multiplies bfloat16 matrices as if they were integers: there, half precision stands in
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return Reference(model)


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """‖value − reference‖ / ‖reference‖; NaN stays NaN and passes no comparison."""
    value, reference = value.double().cpu(), reference.double().cpu()
    return ((value - reference).norm() / reference.norm()).item()


def options_of(
    device: torch.device, temperatures: list[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(rows, positions, temperatures, seeds, answers): the lines take the rows backwards."""
    count = len(temperatures)
    rows = torch.arange(count - 1, -1, -1, dtype=torch.int32, device=device)
    positions = torch.arange(7, 7 + count, dtype=torch.int32, device=device)
    by_row = torch.tensor(temperatures[::-1], dtype=torch.float32, device=device)
    seeds = torch.arange(count, device=device) * 1_234_567_891 - 5
    return rows, positions, by_row, seeds, torch.arange(count, device=device) % 3


def draw(logits: Tensor, *others: Tensor, **options: Any) -> Tensor:
    """What `sample` chooses, given all its arguments but the place for the tokens: int32 [lines]."""
    tokens = torch.full((len(logits),), -7, dtype=torch.int32, device=logits.device)
    sample(logits, *others, tokens, **options)
    return tokens
