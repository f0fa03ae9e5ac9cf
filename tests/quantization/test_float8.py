"""Products with weights that stay in FP8: kernels beside float64, and which checkpoints keep theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.quantization.formats.registry import Quantization, open_format
from server.quantization.formats.scaled import OpenScaled
from tests.checkpoints import tiny_llama
from tests.float8 import rounding
from tests.ops.triton.checks import HALF, relative_error
from tests.quantization.others import compressed, fp8_layer, make

pytest.importorskip("triton")

from server.ops.triton.float8_ops import Float8LayerOps
from server.quantization.fp8.linear import BlockScaledLinear, Float8Linear
from server.quantization.fp8.rows import FLOAT8, Rows, RowScales, quantize
from server.quantization.fp8.scheme import BLOCK, Activations, objection

pytestmark = pytest.mark.usefixtures(rounding.__name__)
EPS = 1e-5
CLOSE = 2e-3 if HALF is torch.float16 else 1e-2
"""Of products in half precision."""
FP8_STEP = 0.03
"""Root mean square of the rounding of one number to FP8, by the number."""


def floats(rows: Rows) -> Tensor:
    """What quantized rows stand for."""
    width = rows.numbers.shape[1] // rows.scales.shape[1]
    return rows.numbers.double() * rows.scales.double().repeat_interleave(width, 1)


def expected_rows(x: Tensor, group: int, static: float | None, ceiling: float) -> Tensor:
    """By the published formula: the greatest number of a group becomes 448."""
    parts = x.float().unflatten(1, (-1, group))
    most = parts.abs().amax(-1, keepdim=True)
    most = most.clamp(max=ceiling) if ceiling else most
    scale = most / 448 if static is None else torch.full_like(most, static)
    numbers = (parts / scale).clamp(-448, 448).to(FLOAT8)
    return (numbers.double() * scale.double()).flatten(1)


@pytest.mark.parametrize(
    ("group", "static", "ceiling"),
    [(None, None, 0.0), (None, None, 1.5), (None, 0.01, 0.0), (128, None, 0.0)],
)
def test_rows(device: torch.device, group: int | None, static: float | None, ceiling: float) -> None:
    x = torch.randn(3, 384, device=device, dtype=HALF)
    scale = None if static is None else torch.tensor([static], device=device)
    found = quantize(x, RowScales(group, scale, ceiling))
    assert found.numbers.dtype is FLOAT8 and found.scales.shape == (3, 384 // (group or 384))
    assert relative_error(floats(found), expected_rows(x, group or 384, static, ceiling)) < 1e-3


def test_rows_behind_a_norm_or_a_gate(device: torch.device) -> None:
    joint = torch.randn(3, 2, 256, device=device, dtype=HALF)
    norm = torch.randn(256, device=device, dtype=HALF)
    x = joint[:, 0]  # rows lie apart
    normed = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS)).to(HALF) * norm
    found = quantize(x, RowScales(), norm=norm, eps=EPS)
    assert relative_error(floats(found), expected_rows(normed, 256, None, 0.0)) < 5e-3
    gated = functional.silu(joint[:, 0].float()) * joint[:, 1].float()
    found = quantize(joint.flatten(1), RowScales(128), gated=True)
    assert relative_error(floats(found), expected_rows(gated.to(HALF), 128, None, 0.0)) < 5e-3


def layer_of(
    kind: type[Float8Linear], device: torch.device, inputs: int, outputs: list[int], **options: Any
) -> tuple[Float8Linear, Tensor]:
    """(a layer with a bias, the float64 weight that it stands for)."""
    activations = options.get("activations", Activations())
    layer = kind(inputs, outputs, bias=True, activations=activations, dtype=HALF, device=device)
    layer.weight.copy_(torch.randn(layer.weight.shape, device=device).mul(50).to(FLOAT8))
    layer.weight_scale.uniform_(0.5, 2.0).mul_(inputs**-0.5 / 50)
    assert layer.bias is not None
    layer.bias.data.normal_()
    scales = layer.weight_scale.double()
    if kind is BlockScaledLinear:
        scales = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return layer, layer.weight.double() * scales


SIZES = [(Float8Linear, 96, [48, 16]), (Float8Linear, 5632, [32]), (BlockScaledLinear, 256, [128, 256])]


@pytest.mark.parametrize(("kind", "inputs", "outputs"), SIZES)
def test_products(device: torch.device, kind: type[Float8Linear], inputs: int, outputs: list[int]) -> None:
    """Of one row with the numbers as they are, of more with those that they are rounded to."""
    layer, weight = layer_of(kind, device, inputs, outputs)
    assert layer.bias is not None
    for rows in (1, 5, 70) if inputs == 96 else (1, 3):
        x = torch.randn(rows, inputs, device=device, dtype=HALF)
        residual = torch.randn(rows, sum(outputs), device=device, dtype=HALF)
        seen = x.double() if rows == 1 else floats(quantize(x, layer.row_scales))
        product = seen @ weight.T + layer.bias.double()
        assert relative_error(layer(x), product) < CLOSE
        assert relative_error(layer(x[None])[0], product) < CLOSE
        assert relative_error(layer(x), x.double() @ weight.T + layer.bias.double()) < 2 * FP8_STEP
        added = residual.double() + product
        assert relative_error(layer.add_to(x, residual), added) < CLOSE


@pytest.mark.parametrize("kind", [Float8Linear, BlockScaledLinear])
def test_what_rides_along(device: torch.device, kind: type[Float8Linear]) -> None:
    """Norms before products, and the gate behind one of a single row."""
    from server.layers.norm import RMSNorm
    from server.layers.spec import FeedForwardSpec, NormSpec

    layer, weight = layer_of(kind, device, 256, [128, 128])
    assert layer.bias is not None
    norm = RMSNorm(256, NormSpec(EPS), dtype=HALF, device=device)
    norm.weight.data.normal_()
    ops = Float8LayerOps()
    for rows in (1, 4):
        x = torch.randn(rows, 256, device=device, dtype=HALF)
        plain = norm(x).double() @ weight.T + layer.bias.double()
        limit = CLOSE if rows == 1 else 2 * FP8_STEP
        assert relative_error(ops.norm_linear(x, norm, layer), plain) < limit
        gate, up = plain.chunk(2, -1)
        gated = ops.norm_feed_forward(x, norm, layer, FeedForwardSpec(128))
        assert relative_error(gated, functional.silu(gate) * up) < 2 * limit


@pytest.mark.parametrize("kind", [Float8Linear, BlockScaledLinear])
@pytest.mark.parametrize("rows", [1, 5])
def test_feed_forward_parts(device: torch.device, kind: type[Float8Linear], rows: int) -> None:
    """Of several rows, what stands between the products is quantized as it is computed."""
    from server.layers.norm import RMSNorm
    from server.layers.spec import FeedForwardSpec, NormSpec
    from server.layers.weights import FeedForwardWeights

    part = FeedForwardWeights()
    part.gate_up, inward = layer_of(kind, device, 256, [128, 128])
    part.down, outward = layer_of(kind, device, 128, [256])
    biases = [layer.bias.double() for layer in (part.gate_up, part.down) if layer.bias is not None]
    norm = RMSNorm(256, NormSpec(EPS), dtype=HALF, device=device)
    norm.weight.data.normal_()
    x = torch.randn(rows, 256, device=device, dtype=HALF)
    gate, up = (norm(x).double() @ inward.T + biases[0]).chunk(2, -1)
    expected = (functional.silu(gate) * up) @ outward.T + biases[1]
    before = x.double()
    found = Float8LayerOps().feed_forward_add(x, norm, part, FeedForwardSpec(128))
    assert relative_error(found.double() - before, expected) < (2 * CLOSE if rows == 1 else 3 * FP8_STEP)


def test_joint_projections_with_static_scales_share_the_greatest(device: torch.device) -> None:
    layer, weight = layer_of(Float8Linear, device, 96, [48, 16], activations=Activations(static=True))
    assert layer.input_scale is not None and layer.bias is not None
    layer.input_scale.copy_(torch.tensor([0.002, 0.01]))
    layer.settle()
    x = torch.randn(4, 96, device=device, dtype=HALF)
    seen = expected_rows(x, 96, 0.01, 0.0)
    assert relative_error(layer(x), seen @ weight.T + layer.bias.double()) < CLOSE


# -- checkpoints ---------------------------------------------------------------------------------

DYNAMIC = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
STATIC = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
GROUPS = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 128, "dynamic": True}
FLOAT = {"num_bits": 8, "type": "float"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
BLOCKS = {"strategy": "block", "block_structure": [128, 128]}
KEPT: dict[str, Any] = {
    "by output": compressed("float-quantized", inputs=DYNAMIC, **FLOAT, strategy="channel"),
    "by tensor": compressed("float-quantized", inputs=DYNAMIC, **FLOAT, strategy="tensor"),
    "static": compressed("float-quantized", inputs=STATIC, **FLOAT, strategy="tensor"),
    "by block": compressed("float-quantized", inputs=GROUPS, **FLOAT, **BLOCKS),
    "fp8 by block": (FP8 | {"weight_block_size": [128, 128]}, fp8_layer((128, 128))),
    "fp8 by tensor": (FP8, fp8_layer(None, name="weight_scale")),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, fp8_layer(None, per_output=True, name="weight_scale")),
}
"""As `tests.quantization.test_other_formats.MADE`."""
NOT_KEPT: list[tuple[dict[str, Any], str]] = [
    (compressed("float-quantized", **FLOAT, strategy="channel")[0], "has activations that are floats"),
    (
        compressed("float-quantized", inputs=DYNAMIC, **FLOAT, **BLOCKS)[0],
        "has activations that are floats",
    ),
    (FP8 | {"activation_scheme": "static"}, "there is no input_scale of model.layers"),
]
PROMPTS = [[0, 17, 250, 99, 3, 41, 42, 300], [5, 6], [7, 8, 9, 10]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), hidden=128, heads=4, kv_heads=4)


@pytest.fixture(scope="module")
def made(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """(checkpoint, float checkpoint) of each."""
    return {what: make(llama, tmp_path_factory.mktemp("made"), *KEPT[what]) for what in KEPT}


def opened(path: Path) -> OpenScaled:
    checkpoint = open_format(path, Quantization("auto"))
    assert isinstance(checkpoint, OpenScaled)
    return checkpoint


@pytest.mark.parametrize("what", KEPT)
def test_kept_weights_are_what_the_reference_says(what: str, made: dict[str, tuple[Path, Path]]) -> None:
    """Bit-equal in float32: compressed-tensors' own dequantizing, or the published formula."""
    path, reference = made[what]
    checkpoint, expected = opened(path).for_float8(None), load_file(reference / "model.safetensors")
    assert len(checkpoint.layers) == 14 and checkpoint.describe(HALF) is None
    for name in checkpoint.layers:
        weight = expected[f"{name}.weight"]
        layer = checkpoint.linear(
            [name], weight.shape[1], [len(weight)], dtype=HALF, device=torch.device("cpu")
        )
        for part, target in layer.weights(name).items():
            ((_, stored),) = checkpoint.read([part], HALF)
            assert stored.shape == target.shape and checkpoint.tensors[part].shape == stored.shape
            target.copy_(stored)
        scales = layer.weight_scale
        if layer.block is not None:
            scales = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        assert torch.equal(layer.weight.float() * scales, weight), name


@pytest.mark.parametrize("what", KEPT)
def test_a_server_computes_what_the_checkpoint_means(
    what: str, made: dict[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log probabilities of prompts are those of transformers on the floats, its linear layers given rows that
    are quantized by the published formula; in float32, where nothing else is rounded."""
    path, reference = made[what]
    monkeypatch.setattr("server.models.load.objection", lambda *_: None)
    loading = {"torch_dtype": "float32", "device": "cpu", "quantization": "auto"}
    served = LLM(path, model_loading_config=loading, cache_config={"num_blocks": 64})
    assert served.capabilities["weights"]["name"] == "fp8 (8 layers)"
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    group, static = 128 if "block" in what else None, 8 / 448 if what == "static" else None

    def quantized(_: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        return (expected_rows(x[0], group or x.shape[-1], static, 0.0).float()[None],)

    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(quantized)
    options = GenerationConfig(max_new_tokens=1, prompt_logprobs=0)
    for prompt, generation in zip(PROMPTS, served.generate(PROMPTS, options), strict=True):
        said = generation.answers[0].prompt_logprobs
        assert said is not None
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, :-1]
        expected = logits.log_softmax(-1)[range(len(prompt) - 1), prompt[1:]]
        torch.testing.assert_close(torch.tensor([each.logprob for each in said]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("declared", "reason"), NOT_KEPT, ids=[reason for _, reason in NOT_KEPT])
def test_what_is_not_multiplied_becomes_floats(
    declared: dict[str, Any], reason: str, llama: Path, tmp_path: Path
) -> None:
    blocks = "config_groups" in declared and "block" in str(declared)
    layer = fp8_layer((128, 128) if blocks else None, per_output=not blocks, name="weight_scale")
    path, reference = make(llama, tmp_path, declared, layer)
    checkpoint = opened(path).for_float8(None)
    assert not checkpoint.layers
    said = checkpoint.describe(HALF)
    assert said is not None and reason in said["reason"]
    name = "model.layers.0.mlp.down_proj.weight"
    ((_, weight),) = checkpoint.read([name], torch.float32)
    assert torch.equal(weight, load_file(reference / "model.safetensors")[name])


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, half = torch.device("cuda"), torch.bfloat16
    assert objection(torch.device("cpu"), half) == "there are no FP8 units (cpu)"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert objection(cuda, half) == "a GPU of compute capability 8.0 has no FP8 units"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert objection(cuda, half) is None
    assert "not float32" in str(objection(cuda, torch.float32))
