"""Norms, activations, one-token products and sampling against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from server.continuous_batching.kernels.base import Kernels
from server.continuous_batching.kernels.triton_backend import TritonKernels
from server.continuous_batching.kernels.triton_gemv import gemv
from server.continuous_batching.kernels.triton_norm import rms_norm, silu_mul
from server.continuous_batching.kernels.triton_sampling import FAILED
from server.continuous_batching.layers.linear import Linear
from server.continuous_batching.layers.norm import RMSNorm
from server.random import uniform
from tests.kernels.conftest import HALF, draw, options_of, relative_error

EPS = 1e-5
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
TYPES = [torch.float32, HALF]


def normed(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight.double()


def gated(x: Tensor) -> Tensor:
    gate, up = x.double().chunk(2, -1)
    return silu(gate) * up


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [96, 2048])
def test_rms_norm(device: torch.device, dtype: torch.dtype, size: int) -> None:
    joint = torch.randn(3, 2 * size, device=device, dtype=dtype)
    x, weight = joint[:, :size], torch.randn(size, device=device, dtype=dtype)  # rows lie apart
    assert relative_error(rms_norm(x, weight, EPS), normed(x, weight)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [80, 1500])
def test_silu_mul(device: torch.device, dtype: torch.dtype, size: int) -> None:
    x = torch.randn(3, 2 * size, device=device, dtype=dtype)
    assert relative_error(silu_mul(x), gated(x)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(256, 64), (96, 48), (5632, 32), (14336, 16)])
def test_gemv(device: torch.device, dtype: torch.dtype, inputs: int, outputs: int) -> None:
    options = {"device": device, "dtype": dtype}
    x, norm = torch.randn(1, inputs, **options), torch.randn(inputs, **options)
    weight = torch.randn(outputs, inputs, **options) * inputs**-0.5
    residual = torch.randn(1, outputs, **options)
    plain, after_norm = x.double() @ weight.double().T, normed(x, norm) @ weight.double().T
    limit = TOLERANCE[dtype]
    assert relative_error(gemv(x, weight), plain) < limit
    assert relative_error(gemv(x, weight, norm=norm, eps=EPS), after_norm) < limit
    assert relative_error(gemv(x, weight, norm=norm, eps=EPS, gated=True), gated(after_norm)) < limit
    expected = residual.double() + plain
    assert relative_error(gemv(x, weight, residual=residual), expected) < limit
    assert relative_error(residual, expected) < limit


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_product_goes_where_it_is_told(
    device: torch.device, dtype: torch.dtype, bias: bool, rows: int
) -> None:
    options = {"device": device, "dtype": dtype}
    norm, linear = RMSNorm(256, EPS, **options), Linear(256, 64, bias=bias, **options)
    for parameter in (*norm.parameters(), *linear.parameters()):
        torch.nn.init.normal_(parameter)
    x, out = torch.randn(rows, 256, **options), torch.full((rows, 64), torch.nan, **options)
    expected = normed(x, norm.weight) @ linear.weight.double().T
    if linear.bias is not None:
        expected += linear.bias.double()
    for kernels in (Kernels(), TritonKernels()):
        assert relative_error(kernels.norm_linear(x, norm, linear), expected) < TOLERANCE[dtype]
        assert kernels.norm_linear(x, norm, linear, out.fill_(torch.nan)) is out
        assert relative_error(out, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TYPES)
def test_sampling_inverts_the_distribution(device: torch.device, dtype: torch.dtype) -> None:
    temperatures = [0.0, 0.6, 1.0, 2.0, 1.0]
    logits = (torch.randn(5, 9001, device=device) * 3).to(dtype)
    rows, positions, by_row, seeds, answers = options_of(device, temperatures)
    last = torch.full((5,), -7, dtype=torch.int32, device=device)
    tokens = draw(logits, rows, positions, by_row, seeds, answers, last).long()
    assert tokens[0] == logits[0].argmax()
    lines = rows.long()
    scaled = logits.double() / by_row[lines].double().clamp(min=1e-9).unsqueeze(1)
    cumulative = scaled.softmax(-1).cumsum(-1)
    numbers = uniform(seeds[lines], answers[lines], positions.long() + 1)
    for line in range(1, 5):  # the number lies within the token's step, give or take float32 sums
        token = int(tokens[line])
        low = cumulative[line, token - 1] if token else cumulative.new_zeros(())
        assert low - 1e-6 <= numbers[line] <= cumulative[line, token] + 1e-6
    assert torch.equal(last[lines].long(), tokens)


def test_a_row_is_drawn_alike_alone_and_among_others(device: torch.device) -> None:
    """Equal scores give equal tokens, to the bit, whatever else is in the batch and wherever the row is."""
    logits = torch.randn(6, 9001, device=device) * 3
    rows, positions, *options = options_of(device, [0.7, 1.0, 0.0, 1.3, 1.0, 0.7])
    last = torch.zeros(6, dtype=torch.int32, device=device)
    together = draw(logits, rows, positions, *options, last)
    alone = [draw(logits[[i]], rows[[i]], positions[[i]], *options, last) for i in range(6)]
    assert torch.equal(torch.cat(alone), together)
    moved = torch.tensor([4, 0, 5, 2, 1, 3], device=device)
    assert torch.equal(draw(logits[moved], rows[moved], positions[moved], *options, last), together[moved])


def test_sampling_reports_scores_that_are_not_finite(device: torch.device) -> None:
    logits = torch.randn(4, 5000, device=device)
    logits[0, 17] = float("nan")
    logits[1] = float("-inf")
    logits[2] = float("-inf")
    logits[2, 4999] = -3.0  # the only token left
    rows, positions, by_row, seeds, answers = options_of(device, [1.0, 0.0, 1.0, 0.0])
    last = torch.zeros(4, dtype=torch.int32, device=device)
    tokens = draw(logits, rows, positions, by_row, seeds, answers, last).tolist()
    assert tokens == [FAILED, FAILED, 4999, int(logits[3].argmax())]
    assert last.min() >= 0  # whatever happens, the next step's input is a token
