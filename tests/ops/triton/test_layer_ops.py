"""Norms, activations, and one-token products against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from server.layers.linear import Linear
from server.layers.norm import RMSNorm
from server.layers.spec import ClampSpec, FeedForwardSpec, NormSpec
from server.ops.layer_ops import LayerOps, between
from server.ops.triton.gates import gate_mul, gate_of
from server.ops.triton.layer_ops import TritonLayerOps
from server.ops.triton.norm import rms_norm
from server.quantization.gemv import gemv
from tests.ops.triton.checks import HALF, relative_error

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
@pytest.mark.parametrize(("heads", "size"), [(1, 64), (5, 80), (32, 128)])
@pytest.mark.parametrize("each", [False, True])
def test_norms_of_heads(device: torch.device, dtype: torch.dtype, heads: int, size: int, each: bool) -> None:
    joint = torch.randn(3, heads + 2, size, device=device, dtype=dtype)
    norm = RMSNorm((heads, size) if each else size, NormSpec(EPS), dtype=dtype, device=device)
    torch.nn.init.normal_(norm.weight)
    found = TritonLayerOps().norm(joint[:, 1:-1], norm)
    assert relative_error(found, normed(joint[:, 1:-1], norm.weight)) < TOLERANCE[dtype]


@pytest.mark.parametrize("clamp", [None, ClampSpec(0.5, 1.7)])
def test_gates_as_in_torch(device: torch.device, clamp: ClampSpec | None) -> None:
    spec = FeedForwardSpec(80, clamp=clamp)
    x = torch.randn(3, 160, device=device)
    gate = gate_of(spec)
    assert gate is not None
    assert relative_error(gate_mul(x, gate), between(x, spec).double()) < 1e-6


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [80, 1500])
def test_gate_mul(device: torch.device, dtype: torch.dtype, size: int) -> None:
    x = torch.randn(3, 2 * size, device=device, dtype=dtype)
    assert relative_error(gate_mul(x), gated(x)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(256, 64), (96, 48), (3072, 24), (5120, 20), (5632, 32), (8192, 12), (14336, 16)]
)
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
    norm, linear = RMSNorm(256, NormSpec(EPS), **options), Linear(256, 64, bias=bias, **options)
    for parameter in (*norm.parameters(), *linear.parameters()):
        torch.nn.init.normal_(parameter)
    x, out = torch.randn(rows, 256, **options), torch.full((rows, 64), torch.nan, **options)
    expected, alone = (each.double() @ linear.weight.double().T for each in (normed(x, norm.weight), x))
    if linear.bias is not None:
        expected, alone = expected + linear.bias.double(), alone + linear.bias.double()
    for ops in (LayerOps(), TritonLayerOps()):
        assert relative_error(ops.norm_linear(x, norm, linear), expected) < TOLERANCE[dtype]
        assert ops.norm_linear(x, norm, linear, out.fill_(torch.nan)) is out
        assert relative_error(out, expected) < TOLERANCE[dtype]
        assert relative_error(ops.linear(x, linear), alone) < TOLERANCE[dtype]
        added = ops.linear_add(x, linear, torch.ones_like(out))
        assert relative_error(added, alone + 1) < TOLERANCE[dtype]
