"""Sums in one order: a row has the same bits alone and among others, in products and attention."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from server.ops.attention import AttentionShape
from server.ops.triton import fixed_decode, fixed_product
from server.ops.triton.attention import FixedOrderAttention
from server.ops.triton.fixed_product import cut_for, product, rows_of_cuts
from tests.ops.shapes import attention_shape, attention_spec
from tests.ops.triton.checks import HALF, relative_error
from tests.ops.triton.ordered import add_in_order
from tests.ops.triton.scenes import check, check_batch, paged_batch, rotary_of


@pytest.fixture
def ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    add_in_order(monkeypatch)


def operands(device: torch.device, rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Rows and a weight."""
    x = torch.randn(rows, inputs, device=device).to(HALF)
    return x, (torch.randn(outputs, inputs, device=device) * inputs**-0.5).to(HALF)


def multiplied(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
    outputs = len(weight) // (2 if options.get("gated") else 1)
    y = torch.empty(len(x), outputs, dtype=x.dtype, device=x.device)
    if options.get("residual"):
        y.copy_(torch.arange(y.numel()).view(y.shape) % 7)
    product(x, weight, y, **options)
    return y


KINDS: list[dict[str, bool]] = [{}, {"gated": True}, {"residual": True}]


@pytest.mark.usefixtures("ordered")
@pytest.mark.parametrize(("kind", "bias"), [*zip(KINDS, (False, True, True), strict=True)])
def test_a_row_has_the_same_bits_among_any_number(
    device: torch.device, kind: dict[str, bool], bias: bool
) -> None:
    """On both sides of every border between tiles."""
    x, weight = operands(device, 200, 520, 160)
    options: dict[str, Any] = dict(kind)
    if bias:
        options["bias"] = torch.randn(160, device=device).to(HALF)
    whole = multiplied(x, weight, **options)
    expected = x.double() @ weight.double().T + (options["bias"].double() if bias else 0.0)
    if kind.get("gated"):
        gate, up = expected.chunk(2, -1)
        expected = silu(gate) * up
    if kind.get("residual"):
        expected += (torch.arange(whole.numel(), device=device).view(whole.shape) % 7).double()
    assert relative_error(whole, expected) < 1e-2
    for rows in (0, 1, 2, 16, 17, 32, 33, 64, 65, 130):
        assert torch.equal(multiplied(x[:rows], weight, **options), whole[:rows]), rows


@pytest.mark.usefixtures("ordered")
def test_tiles_change_no_bit(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = operands(device, 70, 200, 130)
    found = []
    for cut in {*fixed_product._MANY, *fixed_product._MANY_GATED}:
        monkeypatch.setattr(fixed_product, "cut_for", lambda *_, cut=cut: cut)
        found.append(multiplied(x, weight))
    for cut in {*fixed_product._FEW, *fixed_product._FEW_GATED}:
        monkeypatch.setattr(fixed_product, "cut_for", lambda *_, cut=cut: cut)
        found.append(multiplied(x[: cut.rows], weight))
    assert all(torch.equal(found[0][: len(other)], other) for other in found[1:])


def test_tiles_follow_the_number_of_rows() -> None:
    """Those of Llama 3 8B: prompts take large tiles, few rows so small ones that many programs read."""
    tile = lambda *asked: (cut_for(*asked).rows, cut_for(*asked).outputs)  # noqa: E731
    assert tile(8192, 4096, False) == (128, 256)
    assert tile(8192, 14336, True) == (128, 128)
    assert [tile(rows, 4096, False) for rows in (1, 17, 64, 256)] == [(16, 64), (32, 64), (64, 64), (64, 128)]
    for outputs, gated in ((2560, False), (5632, True), (128256, False)):
        rows = rows_of_cuts(outputs, gated)
        cuts = {cut_for(n, outputs, gated) for n in rows}
        assert len(rows) < 8 and {cut_for(n, outputs, gated) for n in range(1, 16385)} == cuts


HEADS = [(4, 2, 64), (6, 2, 96), (8, 1, 128)]


@pytest.mark.parametrize(("heads", "programs"), [(HEADS[0], 1), (HEADS[1], 1024), (HEADS[2], 16)])
def test_attention(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, heads: tuple[int, int, int], programs: int
) -> None:
    """In pieces of 64 tokens, with all of a context's for one program, one for each, and between."""
    monkeypatch.setattr(fixed_decode, "_PROGRAMS", programs)
    monkeypatch.setattr(fixed_decode, "_SMALLEST", 64)
    check(device, HALF, heads, 16, [0, 63, 64, 65, 199], [(33, 100)], FixedOrderAttention)


def test_tokens_that_are_decoded_again(device: torch.device) -> None:
    batch = paged_batch([9, 35, 36, 37, 38], [(0, 35)], 16, device)
    batch.rows[1:5] = batch.rows[5]
    batch.redone = 4
    check_batch(device, HALF, (4, 2, 64), 16, batch, FixedOrderAttention)


@pytest.mark.usefixtures("ordered")
@pytest.mark.parametrize("programs", [1, 2])
def test_decodes_attend_the_same_in_any_company(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, programs: int
) -> None:
    """However many programs share the pieces of a context."""
    monkeypatch.setattr(fixed_decode, "_SMALLEST", 64)
    monkeypatch.setattr(fixed_decode, "_PROGRAMS", programs)
    batch = paged_batch([0, 70, 130, 199], [], 16, device)
    together = attend(device, batch, slice(4))
    monkeypatch.setattr(fixed_decode, "_PROGRAMS", 1024)
    alone = [attend(device, batch, slice(index, index + 1)) for index in range(4)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.usefixtures("ordered")
@pytest.mark.parametrize("window", [None, 20])
def test_borders_of_chunks_change_no_bit(device: torch.device, window: int | None) -> None:
    """Of a prompt of 100 tokens, computed at once and in chunks, also where tiles of keys end."""
    spec = attention_spec(4, 2, 64, window=window)
    batch = paged_batch([], [(0, 100)], 16, device)
    joint = torch.randn(100, 8, 64, device=device).to(HALF)
    cache = torch.zeros((batch.tables.numel(), 1, 2, 16, 2, 64), device=device, dtype=HALF)
    found = []
    for borders in ((0, 100), (0, 7, 64, 65, 100)):
        parts = []
        backend = FixedOrderAttention(AttentionShape((spec,), 16, HALF), [rotary_of(64, HALF, device)], cache)
        for begin, end in pairwise(borders):
            part = paged_batch([], [(begin, end)], 16, device)
            part.tables, part.rows = batch.tables, torch.zeros_like(part.rows)
            backend.prepare(part)
            heads = torch.split(joint[begin:end].clone(), [4, 2, 2], 1)
            parts.append(backend.forward(0, *heads))
        found.append(torch.cat(parts))
    assert torch.equal(*found)


def attend(device: torch.device, batch: Any, rows: slice) -> Tensor:
    """What some decodes of a step attend to, with a cache and tokens that are always the same."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch.tables.numel(), 1, 2, 16, 2, 64)
    cache = torch.randn(shape, generator=generator).to(device, HALF)
    joint = torch.randn(batch.num_decodes, 8, 64, generator=generator).to(device, HALF)
    query, key, value = torch.split(joint, [4, 2, 2], 1)
    backend = FixedOrderAttention(
        attention_shape(4, 2, 64, 16, HALF, 1), [rotary_of(64, HALF, device)], cache
    )
    part = type(batch)(len(joint[rows]), batch.rows[rows], batch.positions[rows], batch.tables)
    backend.prepare(part)
    return backend.forward(0, query[rows], key[rows], value[rows])
