"""Weights equal the published formula and gptqmodel's, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from server.checkpoints.errors import ModelError
from server.quantization.gptq.packing import pack_columns, pack_rows, shift_zeros, unpack_columns, unpack_rows
from tests.quantization.checkpoints import (
    FORMS,
    Form,
    filled_linear,
    published_formula,
    random_layer,
    save_layers,
)

GPTQMODEL = Path(__file__).parent / "gptqmodel.safetensors"
"""Layers packed and dequantized by gptqmodel 7.6 (`make_fixture.py`)."""


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_equal_the_published_formula(form: Form, dtype: torch.dtype, tmp_path: Path) -> None:
    layer = random_layer(form, 256, 48)
    checkpoint = save_layers(tmp_path, form, {"a": layer})
    (weight,) = filled_linear(checkpoint, ["a"]).quantized_weights()
    expected = torch.from_numpy(published_formula(form, layer)).to(dtype)
    assert torch.equal(weight.dequantized(dtype), expected)


def test_weights_equal_those_of_gptqmodel(tmp_path: Path) -> None:
    stored = load_file(GPTQMODEL)
    names = sorted({name.split("/")[0] for name in stored})
    assert len(names) == 32
    for name in names:
        bits, group_size, desc_act, sym, version = map(int, name.split(","))
        form = Form(bits, group_size, bool(desc_act), bool(sym), version)
        layer = {part: stored[f"{name}/{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")}
        checkpoint = save_layers(tmp_path, form, {"a": layer})
        (weight,) = filled_linear(checkpoint, ["a"]).quantized_weights()
        assert torch.equal(weight.dequantized(torch.float16), stored[f"{name}/weight"]), name


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_undone_by_unpacking(bits: int) -> None:
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 1 << bits, (64, 32)).astype(np.uint8))
    assert torch.equal(unpack_rows(pack_rows(codes, bits), bits), codes)
    assert torch.equal(unpack_columns(pack_columns(codes, bits), bits), codes)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_zero_point_of_zero_survives_version_1(bits: int) -> None:
    """Its makers subtract from whole words: a borrow that the reader has to carry back."""
    zeros = (torch.arange(64) % (1 << bits)).to(torch.uint8).view(1, 64)
    stored = shift_zeros(pack_columns(zeros, bits), bits, -1)
    assert torch.equal(unpack_columns(shift_zeros(stored, bits, 1), bits), zeros)


def test_groups_of_unequal_size_are_refused(tmp_path: Path) -> None:
    layer = random_layer(Form(desc_act=True), 128, 16)
    layer["g_idx"][0] = layer["g_idx"][1] = 3
    layer["g_idx"][2] = 3
    checkpoint = save_layers(tmp_path, Form(desc_act=True), {"model.a": layer})
    with pytest.raises(ModelError, match=r"model\.a\.g_idx does not form groups of 32"):
        filled_linear(checkpoint, ["model.a"]).quantized_weights()
