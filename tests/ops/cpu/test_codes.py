"""Products with blocks of GGUF and with weights rounded to 8 bits, exact and with activations as bytes."""

from __future__ import annotations

import gguf
import pytest
import torch
from torch import Tensor

from server.layers.linear import Linear
from server.ops.backend import Arithmetic
from server.ops.cpu.library import NativeLibrary
from server.ops.cpu.rounded import form_of
from server.ops.cpu.weights import PackedWeights
from server.quantization.gguf.codes import FORMS, codes_of
from server.quantization.gguf.linear import GGUFLinear
from tests.quantization.gguf_files import random_blocks

CPU = torch.device("cpu")
INPUTS = 512
ROWS = (1, 2, 3, 5, 8, 9, 16, 17, 31, 33, 70)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
KINDS = pytest.mark.parametrize("kind", FORMS)


def gguf_layer(kinds: list[str], outputs: list[int]) -> tuple[GGUFLinear, Tensor]:
    """A layer of arbitrary blocks, and its weight by the `gguf` package: float64 [outputs, inputs]."""
    layer = GGUFLinear(kinds, INPUTS, outputs, [False] * len(kinds), dtype=torch.float32, device=CPU)
    weights = []
    for seed, (kind, size, place) in enumerate(zip(kinds, outputs, layer.blocks, strict=True)):
        blocks = random_blocks(kind, size, INPUTS, seed)
        place.copy_(torch.from_numpy(blocks))
        weights.append(torch.from_numpy(gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind]).copy()))
    return layer, torch.cat(weights).double()


def inputs(rows: int, dtype: torch.dtype) -> Tensor:
    """Numbers of `dtype`, in float32."""
    return torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(rows)).to(dtype).float()


def rounded_to_bytes(x: Tensor, group: int) -> Tensor:
    """What is left of activations of which each group has the scale greatest / 127; ties as in float32."""
    groups = x.unflatten(1, (-1, group))
    greatest = groups.abs().amax(2, keepdim=True)
    inverse = torch.div(torch.tensor(127.0), greatest)  # 127 / greatest would be its reciprocal times 127
    return (torch.round(groups * inverse).double() * (greatest / 127).double()).flatten(1)


@KINDS
def test_codes_are_those_of_the_gguf_package(kind: str) -> None:
    layer, weight = gguf_layer([kind], [64])
    (matrix,) = layer.small_codes()
    form, piece = matrix.form, matrix.take(torch.arange(64))
    scales = piece.scales.double()
    offsets = None if piece.offsets is None else piece.offsets.double()
    if piece.coarse is not None:
        coarse = piece.coarse.double().repeat_interleave(form.unit, 2)
        scales = scales * coarse[0]
        offsets = None if offsets is None else offsets * coarse[1]
    codes = piece.codes.double() - (0 if offsets is not None else 1 << (form.bits - 1))
    found = codes.unflatten(1, (-1, form.group_size)) * scales.unsqueeze(2)
    if offsets is not None:
        found = found + offsets.unsqueeze(2)
    assert torch.allclose(found.flatten(1), weight, rtol=1e-6, atol=1e-6)


@KINDS
@DTYPES
def test_exact_products(library: NativeLibrary, kind: str, dtype: torch.dtype) -> None:
    """Nothing is rounded but sums in float32."""
    layer, weight = gguf_layer([kind], [200])  # 6 stripes and a part of one
    packed = PackedWeights(library, [layer])
    matrix = packed.pack(layer)
    assert packed.size < 1.04 * weight.numel() / 512 * block_bytes(kind) * 224 / 200
    for rows in ROWS:
        x = inputs(rows, dtype)
        expected = x.double() @ weight.t()
        found = library.multiply(dtype, matrix, 200, x).double()
        assert ((found - expected).norm(dim=1) < 1e-6 * expected.norm(dim=1)).all()


def block_bytes(kind: str) -> float:
    """Bytes of 512 numbers in the file."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return 512 / block * size


@KINDS
@DTYPES
def test_products_of_bytes(library: NativeLibrary, kind: str, dtype: torch.dtype) -> None:
    """Only activations are rounded, each group by its greatest; sums of codes are exact."""
    layer, weight = gguf_layer([kind], [96])
    packed = PackedWeights(library, [layer], arithmetic="int8")
    matrix = packed.pack(layer)
    group, offsets = FORMS[kind].group_size, FORMS[kind].offsets != "none"
    for rows in ROWS:
        x = inputs(rows, dtype)
        expected = x.double() @ weight.t()
        found = library.multiply(dtype, matrix, 96, x).double()
        error = (found - expected).norm(dim=1) / expected.norm(dim=1)
        assert (error < 1e-2).all()
        if not offsets:  # these meet the sum of activations that are not rounded
            near = rounded_to_bytes(x, group) @ weight.t()
            assert ((found - near).norm(dim=1) < 1e-6 * near.norm(dim=1)).all()


def test_parts_of_different_types(library: NativeLibrary) -> None:
    """Queries and keys of one type, values of another, as Q4_K_M has them."""
    layer, weight = gguf_layer(["Q4_K", "Q4_K", "Q6_K"], [96, 32, 64])
    matrix = (packed := PackedWeights(library, [layer])).pack(layer)
    assert matrix.count == 2 and packed.size
    for rows in (1, 8, 40):
        x = inputs(rows, torch.bfloat16)
        expected = x.double() @ weight.t()
        found = library.multiply(torch.bfloat16, matrix, 192, x).double()
        assert ((found - expected).norm(dim=1) < 1e-6 * expected.norm(dim=1)).all()


@pytest.mark.parametrize("halves", [False, True])
def test_weights_of_floats_are_rounded(library: NativeLibrary, halves: bool) -> None:
    layer = Linear(384, 128, dtype=torch.bfloat16, device=CPU)
    torch.manual_seed(0)
    torch.nn.init.normal_(layer.weight)
    weight = layer.weight.detach().double()
    matrix = (packed := PackedWeights(library, [layer], arithmetic="int8")).pack(layer, halves=halves)
    assert packed.size < 1.05 * weight.numel()
    x = torch.randn(9, 384)
    expected = x.double() @ weight.t()
    if halves:
        expected = expected.view(9, 2, 4, 16).transpose(1, 2).reshape(9, 128)
    found = library.multiply(torch.float32, matrix, 128, x).double()
    assert ((found - expected).norm(dim=1) < 1.5e-2 * expected.norm(dim=1)).all()


def test_what_is_no_number_is_not_lost(library: NativeLibrary) -> None:
    """Bytes cannot hold it; the products of that row, and of no other, are none either."""
    layer, _ = gguf_layer(["Q8_0"], [64])
    matrix = (packed := PackedWeights(library, [layer], arithmetic="int8")).pack(layer)
    assert packed.size
    for bad in (float("nan"), float("inf")):
        x = inputs(4, torch.float32)
        x[2, 100] = bad
        finite = torch.isfinite(library.multiply(torch.float32, matrix, 64, x)).all(1)
        assert finite.tolist() == [True, True, False, True]


@pytest.mark.parametrize("arithmetic", ["exact", "int8"])
@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
def test_rows_alike_in_any_company(library: NativeLibrary, arithmetic: Arithmetic, kind: str) -> None:
    layer, _ = gguf_layer([kind], [64])
    matrix = (packed := PackedWeights(library, [layer], arithmetic=arithmetic)).pack(layer)
    assert packed.size
    for dtype in (torch.float32, torch.bfloat16):
        x = inputs(70, dtype)
        whole = library.multiply(dtype, matrix, 64, x)
        for rows in ROWS:
            part = library.multiply(dtype, matrix, 64, x[-rows:].contiguous())
            assert torch.equal(part, whole[-rows:]), f"{rows} rows"


def test_groups_divide_the_inputs() -> None:
    assert [form_of(width).group_size for width in (1024, 576, 96)] == [128, 64, 32]


def test_codes_of_several_rows_are_their_own() -> None:
    """Rows of blocks do not run into each other."""
    rows = torch.from_numpy(random_blocks("Q5_K", 3, INPUTS))
    whole, one = codes_of("Q5_K", rows), codes_of("Q5_K", rows[1:2])
    assert torch.equal(whole.codes[1:2], one.codes) and torch.equal(whole.scales[1:2], one.scales)
