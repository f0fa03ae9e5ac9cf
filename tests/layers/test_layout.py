"""What a checkpoint orders otherwise is brought into the model's order, whole or split over ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from server.checkpoints.errors import ModelError
from server.layers.layout import Layout
from server.layers.linear import Linear, Target
from server.layers.rotary import rotate
from server.layers.spec import (
    AttentionSpec,
    FeedForwardSpec,
    LayerSpec,
    ModelSpec,
    NormScope,
    NormSpec,
    RotarySpec,
)
from server.models.builder import laid_out
from server.models.decoder import Decoder
from server.models.names import Names
from server.models.weights import fill
from server.ops.cpu import backend as native
from tests.models.test_split import logits_of

HEADS, SIZE, INPUTS = 4, 6, 10
CPU = torch.device("cpu")


def test_transposed_matrices_and_their_biases() -> None:
    layout, matrix = Layout(transposed=True), torch.randn(3, 5)
    assert layout.stored_shape((5, 3)) == (3, 5) and layout.stored_shape((5,)) == (5,)
    assert torch.equal(layout.arrange(matrix), matrix.T)
    assert torch.equal(layout.arrange(matrix[0]), matrix[0])
    assert layout.stored_shape((7, 5, 3)) == (7, 3, 5)


@pytest.mark.parametrize("rest", [(), (INPUTS,)])
def test_queries_keys_and_values_of_each_head_side_by_side(rest: tuple[int, ...]) -> None:
    query, key, value = torch.randn(3, HEADS, SIZE, *rest)
    stored = torch.stack((query, key, value), 1).flatten(0, 2)
    target = Target(torch.empty_like(stored), 0, (HEADS * SIZE,) * 3, layout=Layout(mixed_head=SIZE))
    assert torch.equal(target.shard(stored), torch.cat((query, key, value)).flatten(0, 1))
    half = stored[: len(stored) // 2]
    target = Target(torch.empty_like(half), 0, (HEADS // 2 * SIZE,) * 3, layout=Layout(mixed_head=SIZE))
    second = torch.cat([part[HEADS // 2 :] for part in (query, key, value)]).flatten(0, 1)
    assert torch.equal(target.shard(stored, 1, 2), second)


@pytest.mark.parametrize("rotated", [SIZE, 4])
def test_neighbours_that_rotate_together(rotated: int) -> None:
    """Scores are those of heads in which neighbours rotate."""
    heads, angles = torch.randn(2, 3, HEADS, SIZE), torch.randn(3, 1, rotated // 2)
    layout = Layout(paired_head=SIZE, rotated=rotated)

    def turn_neighbours(x: torch.Tensor) -> torch.Tensor:
        numbers = torch.view_as_complex(x[..., :rotated].unflatten(-1, (-1, 2)).contiguous())
        turned = torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
        return torch.cat((turned, x[..., rotated:]), -1)

    def turn_halves(x: torch.Tensor) -> torch.Tensor:
        ordered = layout.arrange(x.flatten(1).T).T.view(x.shape)
        doubled = torch.cat((angles, angles), -1)
        return rotate(ordered, doubled.cos(), doubled.sin())

    query, key = heads
    scores = (turn_neighbours(query) * turn_neighbours(key)).sum(-1)
    torch.testing.assert_close((turn_halves(query) * turn_halves(key)).sum(-1), scores)
    by_head = Layout(paired_head=SIZE, rotated=rotated, by_head=True)
    assert torch.equal(by_head.arrange(query[0]).flatten(), layout.arrange(query[0].flatten()))


def test_gates_and_ups_that_take_turns() -> None:
    gates, ups = torch.randn(2, 3, 5)
    stored = torch.stack((gates, ups), -1).flatten(1)
    assert torch.equal(Layout(mixed_gate=True).arrange(stored), torch.cat((gates, ups), 1))


class Packed(Linear):
    """Stands for a quantized layer."""

    dense = False

    def objection_to_codes(self) -> str | None:
        return None


def test_quantized_weights_in_another_order_are_refused() -> None:
    linear = Packed(4, 6, dtype=torch.float32, device=CPU)
    targets = linear.targets("outputs", "q")
    assert laid_out(linear, targets, "q", None, False) == targets
    for layout, transposed in ((Layout(paired_head=6, rotated=6), False), (None, True)):
        with pytest.raises(ModelError, match="quantized weights of q in an order of the checkpoint's own"):
            laid_out(linear, targets, "q", layout, transposed)


@pytest.mark.parametrize(
    ("names", "norm_scope"),
    [
        (Names(paired=True), None),
        (Names(paired=True), "own"),
        (Names(mixed_heads=True, qkv=("a.qkv",)), None),
    ],
    ids=["paired", "paired and normalised", "mixed"],
)
def test_what_quantized_projections_give_is_put_in_order(names: Names, norm_scope: NormScope | None) -> None:
    """As their codes cannot be: logits are those of floats in order. The C++ pass leaves it to others."""
    norm = NormSpec(1e-5)
    attention = AttentionSpec(4, 4, 16, 16, 0.3)
    if norm_scope is not None:
        attention = replace(attention, norm=norm, norm_scope=norm_scope)
    spec = ModelSpec(
        53, 32, (LayerSpec(attention, FeedForwardSpec(32), norm, norm),), (RotarySpec(100.0, 8),), norm
    )
    torch.manual_seed(3)
    plain = Decoder(spec, torch.float32, CPU, names)
    stored = {name: torch.randn(target.stored_shape()) * 0.3 for name, target in plain.weights().items()}
    models = plain, Decoder(spec, torch.float32, CPU, names, packed_linears)
    for model in models:
        for name, target in model.weights().items():
            fill(target, target.shard(stored[name]))
    assert models[1].layers[0].attention.order is not None
    torch.testing.assert_close(logits_of(models[1]), logits_of(plain))
    assert "in another order" in str(native.objection(models[1], torch.float32))


def packed_linears(names: object, inputs: int, *outputs: int, bias: bool = False) -> Packed:
    return Packed(inputs, *outputs, bias=bias, dtype=torch.float32, device=CPU)
