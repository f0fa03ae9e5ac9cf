"""Products with GPTQ weights against float64, and models of them against their dequantized twins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from server.ops import choose
from server.ops.cpu.library import NativeLibrary
from server.ops.cpu.weights import PackedWeights
from server.quantization.gptq.linear import GPTQLinear
from tests.checkpoints import tiny_llama
from tests.continuous_batching.engines import small_llm
from tests.ops.cpu.test_model import assert_logits
from tests.quantization.checkpoints import FORMS, Form, filled_linear, random_layer, save_layers
from tests.quantization.models import dequantized, quantized, shuffle_groups

FORMS_2 = [form for form in FORMS if form.version == 2]
ROWS = (1, 2, 3, 16, 17, 32, 33, 70)
DTYPES = [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
"""Of the activations, and the error of a product relative to the whole."""


def layer_of(form: Form, path: Path, inputs: int, *outputs: int) -> GPTQLinear:
    layers = {f"part{i}": random_layer(form, inputs, size, seed=i) for i, size in enumerate(outputs)}
    if form.desc_act:  # projections of one input share its order
        for layer in layers.values():
            layer["g_idx"] = layers["part0"]["g_idx"].clone()
    return filled_linear(save_layers(path, form, layers), list(layers))


@pytest.mark.parametrize("form", FORMS_2, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=["f32", "bf16"])
@pytest.mark.parametrize("outputs", [64, 200])  # 200 = 6 stripes and a part of one
def test_product(
    library: NativeLibrary, form: Form, dtype: torch.dtype, tolerance: float, outputs: int, tmp_path: Path
) -> None:
    layer = layer_of(form, tmp_path, 384, outputs)
    (weight,) = layer.quantized_weights()
    exact = weight.dequantized(torch.float32).double()
    packed = PackedWeights(library, [layer])
    matrix = packed.pack(layer)
    assert matrix.count == 1
    for rows in ROWS:
        x = torch.randn(rows, 384, generator=torch.Generator().manual_seed(rows)).to(dtype)
        ordered = x if weight.order is None else x[:, weight.order]
        found = library.multiply(dtype, matrix, outputs, ordered.float())
        expected = x.double() @ exact.t()
        error = (found.double() - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() < tolerance


def test_few_rows_are_not_rounded_to_the_type_of_activations(library: NativeLibrary, tmp_path: Path) -> None:
    """The scale meets the sum of a group: nothing but the activations is in bfloat16."""
    layer = layer_of(Form(group_size=128, sym=False, version=2), tmp_path, 512, 96)
    (weight,) = layer.quantized_weights()
    packed = PackedWeights(library, [layer])
    matrix = packed.pack(layer)
    for rows in (1, 2, 8, 32, 100):
        x = torch.randn(rows, 512).bfloat16()
        expected = x.double() @ weight.dequantized(torch.float32).double().t()
        found = library.multiply(torch.bfloat16, matrix, 96, x.float())
        assert (found.double() - expected).norm() < 1e-6 * expected.norm()


def test_halves_are_interleaved(library: NativeLibrary, tmp_path: Path) -> None:
    """A stripe takes 16 outputs of gate and 16 of up."""
    layer = layer_of(Form(group_size=32), tmp_path, 128, 64, 64)
    (weight,) = layer.quantized_weights()
    packed = PackedWeights(library, [layer])
    matrix = packed.pack(layer, halves=True)
    x = torch.randn(3, 128)
    found = library.multiply(torch.float32, matrix, 128, x)
    expected = x @ weight.dequantized(torch.float32).t()
    gate_and_up = torch.stack((expected[:, :64].view(3, 4, 16), expected[:, 64:].view(3, 4, 16)), dim=2)
    assert torch.allclose(found, gate_and_up.reshape(3, 128), rtol=1e-5, atol=1e-5)


@pytest.fixture
def only_this_build(library: NativeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines run on the build under test."""
    monkeypatch.setattr(choose, "load", lambda: library)


RECIPES: list[dict[str, Any]] = [
    {"group_size": 32},
    {"group_size": 64, "sym": False},
    {"group_size": -1},
]
ORDERS = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "o_proj": 2, "gate_proj": 3, "up_proj": 3, "down_proj": 4}


@pytest.mark.usefixtures("only_this_build")
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "desc_act"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("bfloat16", 5e-2)], ids=["f32", "bf16"])
def test_logits_of_prompts_and_decodes(
    recipe: dict[str, Any], shuffled: bool, dtype: str, tolerance: float, tmp_path: Path
) -> None:
    """Prompts of more than 32 tokens and of fewer, then decodes, all with biases.

    In bfloat16 embedding, head and biases are rounded, which they are not in the reference.
    """
    biased = {"attention_bias": True, "mlp_bias": True, "initializer_range": 0.1}
    path = quantized(tiny_llama(tmp_path / "llama", hidden=128, **biased), tmp_path / "q", **recipe)
    if shuffled:
        shuffle_groups(path, ORDERS)
    model = AutoModelForCausalLM.from_pretrained(dequantized(path, tmp_path / "float"), dtype=torch.float64)
    llm = small_llm(path, dtype=dtype, quantize_method="gptq")
    assert llm.capabilities["weights"]["name"] == "native-int4 (8 layers)"
    torch.manual_seed(7)
    prompts = [torch.randint(3, 500, (length,)).tolist() for length in (70, 33, 1)]
    assert_logits(llm, model, prompts, tolerance)
