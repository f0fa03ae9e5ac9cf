"""What tests of Triton kernels share: inputs, and how far results may be from their reference."""

from __future__ import annotations

import torch

# the interpreter multiplies bfloat16 matrices as if they were integers: there, half precision stands in
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """‖value − reference‖ / ‖reference‖; NaN stays NaN and passes no comparison."""
    value, reference = value.double().cpu(), reference.double().cpu()
    return ((value - reference).norm() / reference.norm()).item()
