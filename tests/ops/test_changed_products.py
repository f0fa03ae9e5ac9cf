"""A layer that changes the products of another, as an adapter does, is honoured on every backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from protocol.generation import GenerationConfig
from server.continuous_batching import loaded_model
from server.layers.linear import Linear, LinearLayer
from server.layers.norm import RMSNorm
from server.layers.spec import FeedForwardSpec, NormSpec
from server.models.load import load_model
from server.ops import choose
from server.ops.layer_ops import LayerOps
from server.ops.triton.fixed_order import objection
from server.ops.triton.float8_ops import Float8LayerOps
from server.ops.triton.layer_ops import TritonLayerOps
from tests.checkpoints import tiny_llama
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference

RANK = 3
PROMPTS = [[5, 6, 7], list(range(40, 90)), [300]]
GREEDY = GenerationConfig(max_new_tokens=12, ignore_eos=True)


class Adapted(LinearLayer):
    """``base(x) + (x down) up``."""

    def __init__(self, base: LinearLayer, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.base, self.outputs, self.bias = base, base.outputs, base.bias
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = nn.Parameter(up, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + (x @ self.down) @ self.up
        return y


def adapt(base: LinearLayer, seed: int) -> tuple[Adapted, Tensor]:
    """A layer around `base`, and what it adds to the weight."""
    outputs, inputs = base.weight.shape
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(*shape, generator=generator) / 8 for shape in ((inputs, RANK), (RANK, outputs)))
    down, up = down.to(base.weight.dtype), up.to(base.weight.dtype)
    return Adapted(base, down, up), (down @ up).t()


def adapt_layers(model: nn.Module) -> list[Tensor]:
    """Adapt all linear layers of the decoder layers; returns what is added to each weight."""
    added = []
    for index, layer in enumerate(model.layers):  # type: ignore[arg-type]  # torch's stubs know no child's class
        for part, name in (
            (layer.attention, "qkv"), (layer.attention, "output"),
            (layer.feed_forward, "gate_up"), (layer.feed_forward, "down"),
        ):  # fmt: skip
            adapted, change = adapt(getattr(part, name), len(added) + 100 * index)
            setattr(part, name, adapted)
            added.append(change)
    return added


@pytest.mark.parametrize("packed", [True, False])
def test_on_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    """Equal to transformers with what is added merged into its weights."""
    path, merged = tiny_llama(tmp_path / "model"), tmp_path / "merged"
    changes: list[Tensor] = []

    def load_adapted(*arguments: object) -> object:
        model, dequantized = load_model(*arguments)  # type: ignore[arg-type]
        changes.extend(adapt_layers(model))
        return model, dequantized

    monkeypatch.setattr(loaded_model, "load_model", load_adapted)
    if not packed:
        monkeypatch.setattr(choose.packed, "objection", lambda _: "a test")
    llm = small_llm(path)
    kernels = llm.capabilities["kernels"]
    assert "do not compute layers of class Adapted" in kernels["reason"]
    assert ("oneDNN" in kernels["name"]) == packed
    reference = AutoModelForCausalLM.from_pretrained(path)
    for index, layer in enumerate(reference.model.layers):
        qkv, output, gate_up, down = changes[4 * index : 4 * index + 4]
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        for stacked, parts in ((qkv, projections), (gate_up, (mlp.gate_proj, mlp.up_proj))):
            for part, change in zip(parts, stacked.split([len(p.weight) for p in parts]), strict=True):
                part.weight.data += change
        attention.o_proj.weight.data += output
        mlp.down_proj.weight.data += down
    reference.save_pretrained(merged)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (merged / name).write_bytes((path / name).read_bytes())
    generations = llm.generate(PROMPTS, GREEDY)
    assert Reference(merged).contradicted([(p, GREEDY) for p in PROMPTS], generations) == []
    assert Reference(path).contradicted([(p, GREEDY) for p in PROMPTS], generations) != []


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("ops", [LayerOps, TritonLayerOps, Float8LayerOps])
def test_layer_operations(device: torch.device, ops: type[LayerOps], rows: int) -> None:
    """No override fuses such a layer: not a norm, not a gate, not the residual, not one token's product."""
    torch.manual_seed(rows)
    options = {"device": device, "dtype": torch.float32}
    base = Linear(64, 48, 48, **options)  # type: ignore[arg-type]
    nn.init.normal_(base.weight, std=0.1)
    norm = RMSNorm(64, NormSpec(1e-5), **options)  # type: ignore[arg-type]
    nn.init.normal_(norm.weight)
    adapted, change = adapt(base, 1)
    merged = Linear(64, 48, 48, **options)  # type: ignore[arg-type]
    merged.weight.data.copy_(base.weight + change)
    spec, plain, used = FeedForwardSpec(48), LayerOps(), ops()
    x, residual = torch.randn(rows, 64, **options), torch.randn(rows, 96, **options)  # type: ignore[arg-type]
    out = torch.empty(rows, 96, **options)  # type: ignore[arg-type]
    with torch.inference_mode():
        pairs = [
            (used.linear(x, adapted), plain.linear(x, merged)),
            (used.norm_linear(x, norm, adapted), plain.norm_linear(x, norm, merged)),
            (used.norm_linear(x, norm, adapted, out), plain.norm_linear(x, norm, merged)),
            (used.norm_feed_forward(x, norm, adapted, spec), plain.norm_feed_forward(x, norm, merged, spec)),
            (
                used.linear_add(x, adapted, residual.clone()),
                plain.linear_add(x, merged, residual.clone()),
            ),
            (
                used.linear_add(x, adapted, residual.clone(), scale=0.5),
                plain.linear_add(x, merged, residual.clone(), scale=0.5),
            ),
        ]
    for found, expected in pairs:
        assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_one_order_of_sums_is_refused(tmp_path: Path) -> None:
    from server.models.config import ModelConfig
    from server.models.decoder import Decoder

    spec = ModelConfig.load(tiny_llama(tmp_path / "model")).spec
    model = Decoder(spec, torch.bfloat16, torch.device("cpu"))
    assert objection(model, torch.bfloat16, (9, 0)) is None
    adapt_layers(model)
    reason = objection(model, torch.bfloat16, (9, 0))
    assert reason is not None and "Adapted" in reason and "layers.0.attention" in reason
