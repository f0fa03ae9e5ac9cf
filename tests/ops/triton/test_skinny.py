"""The candidate for products of a few rows against float64."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.skinny import Tiling, skinny
from tests.ops.triton.checks import HALF, relative_error
from tests.ops.triton.test_layer_ops import EPS, TOLERANCE, gated, normed


@pytest.mark.parametrize("rows", [2, 16, 19])
@pytest.mark.parametrize("tiling", [Tiling(16, 128, 4, 3), Tiling(32, 64, 4, 2)], ids=str)
def test_skinny(device: torch.device, rows: int, tiling: Tiling) -> None:
    inputs, outputs = 384, 64
    options = {"device": device, "dtype": HALF}
    x, norm = torch.randn(rows, inputs, **options), torch.randn(inputs, **options)
    weight = torch.randn(2 * outputs, inputs, **options) * inputs**-0.5
    plain, after_norm = x.double() @ weight.double().T, normed(x, norm) @ weight.double().T
    y = torch.full((rows, 2 * outputs), float("nan"), **options)
    skinny(x, weight, y, tiling, norm=norm, eps=EPS)
    assert relative_error(y, after_norm) < TOLERANCE[HALF]
    y = torch.full((rows, outputs), float("nan"), **options)
    skinny(x, weight, y, tiling, norm=norm, eps=EPS, gated=True)
    assert relative_error(y, gated(after_norm)) < TOLERANCE[HALF]
    y = torch.randn(rows, 2 * outputs, **options)
    expected = y.double() + plain
    skinny(x, weight, y, tiling, residual=True)
    assert relative_error(y, expected) < TOLERANCE[HALF]
