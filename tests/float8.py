"""What tests of FP8 share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's interpreter round to FP8 as GPUs and torch do: by itself it loses the carry of a mantissa
    that is rounded up to the next power of two."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(values: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if target != tl.float8e4nv:
            return convert(values, source, target, mode)
        floats = torch.from_numpy(np.ascontiguousarray(values))
        return floats.to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
