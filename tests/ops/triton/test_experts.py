"""Experts in Triton against those in torch, which compares with transformers elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from server.layers.expert_stack import ExpertStack
from server.layers.linear import Linear
from server.layers.microscaled import Microscaled
from server.layers.spec import ClampSpec, ExpertsSpec, FeedForwardSpec
from server.layers.weights import ExpertsWeights
from server.ops.layer_ops import LayerOps
from server.ops.triton import experts
from server.ops.triton.layer_ops import TritonLayerOps
from server.ops.triton.routing import assign
from server.quantization.fp8.stack import ScaledStack
from tests.ops.triton.checks import HALF, relative_error
from tests.quantization.stacks import random_stack

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
@pytest.mark.parametrize("rows", [1, 3, 9, 200])
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


def replace_stacks(weights: ExpertsWeights, gate_up: ExpertStack, down: ExpertStack) -> None:
    del weights.gate_up, weights.down  # or torch wants parameters in their place
    weights.gate_up, weights.down = gate_up, down


@pytest.mark.parametrize("rows", [1, 9, 200])
@pytest.mark.parametrize("used", [1, 3])
def test_experts_in_mxfp4(device: torch.device, rows: int, used: int) -> None:
    spec = replace(CLAMPED, inner=96, experts=ExpertsSpec(7, used))
    weights = weights_of(spec, 160, HALF, device)
    replace_stacks(weights, in_mxfp4(7, 2 * 96, 160, HALF, device), in_mxfp4(7, 160, 96, HALF, device))
    x = torch.randn(rows, 160, dtype=HALF, device=device)
    found = TritonLayerOps().experts(x, None, weights, spec)
    assert relative_error(found, LayerOps().experts(x, None, weights, spec).double()) < TOLERANCE[HALF]


SCALED = {
    "fp8": (torch.float8_e4m3fn, None),
    "blocks": (torch.float8_e4m3fn, 128),
    "int8": (torch.int8, None),
}
"""Type of the numbers, and of how many a side a block is."""


def scaled_stack(
    shape: tuple[int, int, int], parts: int, kind: str, dtype: torch.dtype, device: torch.device
) -> ScaledStack:
    """Random numbers of 8 bits."""
    stored, block = SCALED[kind]
    made = ScaledStack(shape, parts, stored=stored, block=block, dtype=dtype, device=device)
    numbers = torch.randn(shape, device=device) * (40 if stored == torch.int8 else 2)
    made.weight.copy_(numbers.clamp(-127, 127))
    made.weight_scale.uniform_(0.001, 0.004).mul_(1 if stored == torch.int8 else 20)
    return made


@pytest.mark.parametrize("rows", [1, 9, 300])
@pytest.mark.parametrize("kind", SCALED)
def test_experts_of_8_bits(device: torch.device, rows: int, kind: str) -> None:
    inner, hidden = (128, 256) if kind == "blocks" else (40, 48)
    spec = replace(PLAIN, inner=inner)
    weights = weights_of(spec, hidden, HALF, device)
    gate_up = scaled_stack((7, 2 * inner, hidden), 2, kind, HALF, device)
    replace_stacks(weights, gate_up, scaled_stack((7, hidden, inner), 1, kind, HALF, device))
    x = torch.randn(rows, hidden, dtype=HALF, device=device)
    found = TritonLayerOps().experts(x, None, weights, spec)
    assert relative_error(found, LayerOps().experts(x, None, weights, spec).double()) < TOLERANCE[HALF]


@pytest.mark.parametrize("rows", [1, 9, 300])
@pytest.mark.parametrize(
    ("bits", "group", "symmetric", "ordered"),
    [
        (4, 128, True, True),
        (4, 32, False, True),
        (4, -1, True, True),
        (8, 64, False, True),
        (4, 64, True, False),
    ],
)
def test_experts_of_codes(
    device: torch.device, rows: int, bits: int, group: int, symmetric: bool, ordered: bool
) -> None:
    spec = replace(PLAIN, inner=128)
    weights, reference = (weights_of(spec, 256, HALF, device) for _ in range(2))
    options = {"symmetric": symmetric, "ordered": ordered, "dtype": HALF, "device": torch.device("cpu")}
    for changed in (weights, reference):
        torch.manual_seed(3)
        stacks = [
            random_stack((7, 256, 256), bits, group, **options),
            random_stack((7, 256, 128), bits, group, parts=1, **options),
        ]
        replace_stacks(changed, *stacks)
        for stack in stacks:
            stack.settle(torch.device("cpu"))
    for stack in (weights.gate_up, weights.down):
        stack.to(device).pack_for_triton()
    x = torch.randn(rows, 256, dtype=HALF)
    chosen, shares = LayerOps().route(torch.randn(rows, 7), ExpertsSpec(7, 3))
    for stack in (reference.gate_up, reference.down):
        stack.dtype = torch.float32
    expected = LayerOps().chosen_experts(x.float(), chosen, shares, reference, spec)
    found = TritonLayerOps().chosen_experts(
        x.to(device), chosen.int().to(device), shares.to(device), weights, spec
    )
    assert relative_error(found, expected.double()) < TOLERANCE[HALF]


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
