"""Gated products of many rows against float64, and which go there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.device.triton_support import Gpu
from server.layers.linear import Linear
from server.layers.norm import RMSNorm
from server.layers.spec import FeedForwardSpec, NormSpec
from server.models.config import ModelConfig
from server.models.decoder import Decoder
from server.ops.triton import gated_product as module
from server.ops.triton import layer_ops, tiled_products
from server.ops.triton.gated_product import gated_product, takes
from server.ops.triton.layer_ops import TritonLayerOps
from tests.checkpoints import tiny_llama
from tests.ops.triton.checks import HALF, relative_error
from tests.ops.triton.test_layer_ops import EPS, TOLERANCE, gated, normed

LIMIT = TOLERANCE[HALF]


@pytest.mark.parametrize("rows", [1, 128, 300])
@pytest.mark.parametrize(("inputs", "outputs"), [(72, 40), (256, 512), (136, 664)])
def test_products(device: torch.device, rows: int, inputs: int, outputs: int) -> None:
    """Tiles that are full and that are not; more tiles than programs, and fewer."""
    options = {"device": device, "dtype": HALF}
    x, weight = torch.randn(rows, inputs, **options), torch.randn(2 * outputs, inputs, **options)
    weight *= inputs**-0.5
    assert relative_error(gated_product(x, weight), gated(x.double() @ weight.double().T)) < LIMIT


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """All devices pass for an H200."""
    monkeypatch.setattr(tiled_products, "is_hopper", lambda device: True)
    monkeypatch.setattr(module, "gpu_of", lambda device: Gpu(132, 227 * 1024))


@pytest.mark.usefixtures("hopper")
def test_which_products_go_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(rows: int, outputs: int, inputs: int = 4_096, dtype: torch.dtype = HALF) -> bool:
        made = [torch.empty(size, inputs, dtype=dtype, device="meta") for size in (rows, 2 * outputs)]
        return takes(*made)

    assert [rows for rows in (512, 1024, 1536, 2048, 8192) if taken(rows, 14_336)] == [1024, 2048, 8192]
    assert [rows for rows in (256, 384, 512, 640, 1024) if taken(rows, 5_632, inputs=2_048)] == [384, 1024]
    assert not taken(8192, 14_336, dtype=torch.float32), "sums of float32 are not those of its matrix units"
    assert not taken(8192, 14_336, inputs=4_092), "rows of other than 16 bytes"
    assert not taken(0, 14_336) and not taken(8192, 14_332)
    monkeypatch.setattr(tiled_products, "is_hopper", lambda device: False)
    assert not taken(8192, 14_336), "another GPU than those it was measured on"


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("bias", [False, True])
def test_layers_use_it(device: torch.device, monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    """With a bias the product is cuBLAS's."""
    seen: list[int] = []
    monkeypatch.setattr(
        layer_ops, "gated_product", lambda x, weight: seen.append(len(x)) or gated_product(x, weight)
    )
    options = {"device": device, "dtype": HALF}
    norm, into = RMSNorm(128, NormSpec(EPS), **options), Linear(128, 192, bias=bias, **options)
    for parameter in (*norm.parameters(), *into.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(130, 128, **options)
    expected = normed(x, norm.weight) @ into.weight.double().T + (into.bias.double() if bias else 0.0)
    inner = TritonLayerOps().norm_feed_forward(x, norm, into, FeedForwardSpec(96))
    assert relative_error(inner, gated(expected)) < LIMIT
    assert seen == ([] if bias else [130])


@pytest.mark.usefixtures("hopper")
def test_models_compile_it_when_they_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each shape, although no prompt is there that needs it."""
    spec = ModelConfig.load(tiny_llama(tmp_path, layers=3)).spec
    model = Decoder(spec, HALF, torch.device("cpu"))
    seen: list[torch.Size] = []
    monkeypatch.setattr(layer_ops, "gated_product", lambda x, weight: seen.append(weight.shape))
    TritonLayerOps().prepare(model, HALF)
    assert seen == [model.layers[0].feed_forward.gate_up.weight.shape]
