"""Products of Triton's interpreter that add input by input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from server.device.triton_support import INTERPRETED


def add_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a product add in the order of its inputs: numpy's order follows the size of a tile, which that of a
    GPU's units does not."""
    if not INTERPRETED:
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(_: Any, a: Any, b: Any, d: Any, *__: Any) -> Any:
        total = d.data.astype(np.float32)
        left, right = a.data.astype(np.float32), b.data.astype(np.float32)
        for k in range(left.shape[1]):
            total = total + left[:, k, None] * right[None, k, :]
        return TensorHandle(total, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
