"""Triton kernels are tested on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

# the interpreter multiplies bfloat16 matrices as if they were integers: there, half precision stands in
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """‖value − reference‖ / ‖reference‖; NaN stays NaN and passes no comparison."""
    value, reference = value.double().cpu(), reference.double().cpu()
    return ((value - reference).norm() / reference.norm()).item()
