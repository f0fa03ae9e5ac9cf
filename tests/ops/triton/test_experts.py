"""Experts in Triton against those in torch, which compares with transformers elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from server.layers.linear import Linear
from server.layers.microscaled import Microscaled
from server.layers.spec import ClampSpec, ExpertsSpec, FeedForwardSpec
from server.layers.weights import ExpertsWeights
from server.ops.layer_ops import LayerOps
from server.ops.triton import experts
from server.ops.triton.layer_ops import TritonLayerOps
from server.ops.triton.routing import assign
from tests.ops.triton.checks import HALF, relative_error

TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 2e-2}
PLAIN = FeedForwardSpec(40, experts=ExpertsSpec(7, 3))
CLAMPED = FeedForwardSpec(40, bias=True, clamp=ClampSpec(0.5, 1.7), experts=ExpertsSpec(7, 3))
UNGATED = FeedForwardSpec(72, "relu2", gated=False, experts=ExpertsSpec(5, 1, normalized=False))


def weights_of(
    spec: FeedForwardSpec, hidden: int, dtype: torch.dtype, device: torch.device
) -> ExpertsWeights:
    """Random ones."""
    assert spec.experts is not None
    options = {"dtype": dtype, "device": device}
    count, wide = spec.experts.count, 2 * spec.inner if spec.gated else spec.inner
    made = ExpertsWeights()
    made.router = Linear(hidden, count, **options)
    nn.init.normal_(made.router.weight)

    def random(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape, **options) * 0.2, requires_grad=False)

    made.gate_up, made.down = random(count, wide, hidden), random(count, hidden, spec.inner)
    made.gate_up_bias = random(count, wide) if spec.bias else None
    made.down_bias = random(count, hidden) if spec.bias else None
    made.shared = made.shared_gate = None
    return made


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("rows", [1, 9, 200])
@pytest.mark.parametrize("spec", [PLAIN, CLAMPED, UNGATED], ids=["plain", "clamped", "ungated"])
def test_experts(device: torch.device, dtype: torch.dtype, rows: int, spec: FeedForwardSpec) -> None:
    weights = weights_of(spec, 48, dtype, device)
    x = torch.randn(rows, 48, dtype=dtype, device=device)
    found = TritonLayerOps().experts(x, None, weights, spec)
    assert relative_error(found, LayerOps().experts(x, None, weights, spec).double()) < TOLERANCE[dtype]


def test_tiles_of_long_prompts(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "_MANY_ROWS", 32)
    weights = weights_of(PLAIN, 48, HALF, device)
    x = torch.randn(200, 48, dtype=HALF, device=device)
    found = TritonLayerOps().experts(x, None, weights, PLAIN)
    assert relative_error(found, LayerOps().experts(x, None, weights, PLAIN).double()) < TOLERANCE[HALF]


def in_mxfp4(count: int, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device) -> Microscaled:
    """Codes of every kind."""
    made = Microscaled(count, outputs, inputs, dtype=dtype, device=device)
    made.blocks.random_(0, 256)
    made.scales.random_(120, 126)
    return made


@pytest.mark.parametrize("rows", [1, 9, 200])
@pytest.mark.parametrize("used", [1, 3])
def test_experts_in_mxfp4(device: torch.device, rows: int, used: int) -> None:
    spec = replace(CLAMPED, inner=96, experts=ExpertsSpec(7, used))
    weights = weights_of(spec, 160, HALF, device)
    del weights.gate_up, weights.down  # or torch wants parameters in their place
    weights.gate_up = in_mxfp4(7, 2 * 96, 160, HALF, device)
    weights.down = in_mxfp4(7, 160, 96, HALF, device)
    x = torch.randn(rows, 160, dtype=HALF, device=device)
    found = TritonLayerOps().experts(x, None, weights, spec)
    assert relative_error(found, LayerOps().experts(x, None, weights, spec).double()) < TOLERANCE[HALF]


@pytest.mark.parametrize("spec", [ExpertsSpec(7, 3), ExpertsSpec(128, 8, normalized=False)])
def test_routes_are_those_of_torch(device: torch.device, spec: ExpertsSpec) -> None:
    scores = torch.randn(20, spec.count, device=device)
    chosen, shares = TritonLayerOps().route(scores, spec)
    expected, expected_shares = LayerOps().route(scores, spec)
    assert torch.equal(chosen, expected.int())
    assert relative_error(shares, expected_shares.double()) < 1e-6


def test_every_choice_is_in_a_tile_of_its_expert(device: torch.device) -> None:
    """Also where one expert gets all rows, and others none."""
    for chosen in (torch.zeros(50, 1, dtype=torch.int64), torch.randint(0, 4, (33, 2))):
        to, seen = assign(chosen.to(device, torch.int32), 6, 16), []
        for tile, expert in enumerate(to.experts.tolist()):
            if expert < 6:
                begin = int(to.begins[expert]) + (tile - int(to.first_tiles[expert])) * to.tile
                seen += [(expert, row) for row in range(begin, min(begin + to.tile, int(to.ends[expert])))]
        order, flat = to.order.tolist(), chosen.flatten().tolist()
        assert sorted(row for _, row in seen) == list(range(len(flat)))
        assert all(flat[order[row]] == expert for expert, row in seen)
