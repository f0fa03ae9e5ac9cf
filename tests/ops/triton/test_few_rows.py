"""Products of some rows against float64, in every way to cut them up, and which products go there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from server.layers.linear import Linear
from server.layers.norm import RMSNorm
from server.layers.spec import FeedForwardSpec, NormSpec
from server.ops.triton import tiled_products
from server.ops.triton.few_rows import Cut, cut_for, few_rows, takes
from server.ops.triton.layer_ops import TritonLayerOps
from tests.ops.triton.checks import HALF, relative_error
from tests.ops.triton.test_layer_ops import EPS, TOLERANCE, gated, normed

LIMIT = TOLERANCE[HALF]


@pytest.mark.parametrize("rows", [2, 16, 19, 64, 100])
@pytest.mark.parametrize("cut", [None, Cut(64, 3), Cut(64, 4, 2), Cut(128, 2, 3), Cut(64, 6)], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(384, 192), (328, 40)])
def test_products(device: torch.device, rows: int, cut: Cut | None, inputs: int, outputs: int) -> None:
    options = {"device": device, "dtype": HALF}
    x, bias = torch.randn(rows, inputs, **options), torch.randn(2 * outputs, **options)
    weight = torch.randn(2 * outputs, inputs, **options) * inputs**-0.5
    plain = x.double() @ weight.double().T
    assert relative_error(few_rows(x, weight, cut=cut), plain) < LIMIT
    biased = plain + bias.double()
    assert relative_error(few_rows(x, weight, bias=bias, cut=cut), biased) < LIMIT
    assert relative_error(few_rows(x, weight, bias=bias, gated=True, cut=cut), gated(biased)) < LIMIT
    residual = torch.randn(rows, 2 * outputs, **options)
    expected = residual.double() + plain
    assert few_rows(x, weight, residual=residual, cut=cut) is residual
    assert relative_error(residual, expected) < LIMIT


def test_nothing_is_left_behind_for_the_next_product(device: torch.device) -> None:
    """Parts are counted in memory that all products share."""
    x, weight = (torch.randn(rows, 512, device=device, dtype=HALF) for rows in (3, 130))
    expected = x.double() @ weight.double().T
    for parts in (4, 2, 4):
        assert relative_error(few_rows(x, weight, cut=Cut(64, 2, parts)), expected) < LIMIT


def test_as_many_programs_as_there_is_room_for() -> None:
    def parts(rows: int, outputs: int, inputs: int) -> int:
        return cut_for(rows, outputs, inputs, gated=False, multiprocessors=132).parts

    assert parts(16, 6_144, 4_096) == 1, "96 tiles on 132 multiprocessors"
    assert parts(16, 4_096, 14_336) == 2
    assert parts(16, 2_048, 5_632) == 4
    assert parts(16, 2_048, 2_048) == 2, "no less than 1,024 inputs each"
    assert parts(64, 4_096, 14_336) == 4, "two programs share a multiprocessor"
    assert parts(100, 4_096, 14_336) == 2 and parts(100, 4_096, 4_096) == 1, "no less than 4,096 inputs each"


@pytest.mark.parametrize(("rows", "outputs", "stages"), [(32, 5_632, 4), (100, 5_632, 6), (100, 14_336, 3)])
def test_gated_programs_fill_a_multiprocessor_alone_or_by_twos(rows: int, outputs: int, stages: int) -> None:
    assert cut_for(rows, outputs, 4_096, gated=True, multiprocessors=132).stages == stages


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """(rows, whether gated) of the products that go to the kernel, on what passes for Hopper."""
    seen: list[tuple[int, bool]] = []

    def noted(x: Tensor, weight: Tensor, *, gated: bool = False) -> bool:
        found = takes(x, weight, gated=gated)
        if found:
            seen.append((len(x), gated))
        return found

    monkeypatch.setattr(tiled_products, "is_hopper", lambda device: True)
    monkeypatch.setattr("server.ops.triton.layer_ops.few_rows_takes", noted)
    return seen


@pytest.mark.parametrize(("rows", "count"), [(1, 0), (2, 3), (32, 3), (33, 1), (128, 1), (129, 0)])
def test_which_products_go_there(
    device: torch.device, wanted: list[tuple[int, bool]], rows: int, count: int
) -> None:
    """With more than 32 rows only those of many outputs, here the gated one."""
    options = {"device": device, "dtype": HALF}
    norm, spec = RMSNorm(128, NormSpec(EPS), **options), FeedForwardSpec(96)
    into, out = Linear(128, 192, bias=True, **options), Linear(96, 128, bias=False, **options)
    for parameter in (*norm.parameters(), *into.parameters(), *out.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    ops, x = TritonLayerOps(), torch.randn(rows, 128, **options)
    expected = normed(x, norm.weight) @ into.weight.double().T + into.bias.double()
    assert relative_error(ops.norm_linear(x, norm, into), expected) < LIMIT
    inner = ops.norm_feed_forward(x, norm, into, spec)
    assert relative_error(inner, gated(expected)) < LIMIT
    expected = x.double() + inner.double() @ out.weight.double().T
    assert relative_error(ops.linear_add(inner, out, x), expected) < LIMIT
    assert len(wanted) == count
    assert not count or (rows, True) in wanted


def test_what_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled_products, "is_hopper", lambda device: True)
    x, weight = torch.zeros(4, 64, dtype=HALF), torch.zeros(64, 64, dtype=HALF)
    assert takes(x, weight)
    assert not takes(x.float(), weight.float()), "sums of float32 are not those of its matrix units"
    assert not takes(torch.zeros(64, 4, dtype=HALF).T, weight), "rows lie apart"
    assert not takes(x[:, :60].contiguous(), weight[:, :60].contiguous()), "rows of other than 16 bytes"
    assert not takes(x, torch.zeros(32_000, 64, dtype=HALF)), "a head"
    monkeypatch.setattr(tiled_products, "is_hopper", lambda device: False)
    assert not takes(x, weight), "another GPU than those it was measured on"
