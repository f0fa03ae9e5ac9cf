"""Models whose experts are quantized: the answers of the floats that their weights stand for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.same_bits.answers import Answerer, Asked
from server.checkpoints.errors import ModelError
from server.layers.expert_stack import ExpertStack
from server.layers.microscaled import Microscaled
from server.models.config import ModelConfig
from server.models.load import load_model
from server.models.source import ModelSource
from server.quantization.formats.base import OpenFormat
from server.quantization.formats.gptq import OpenGPTQ
from server.quantization.formats.registry import Quantization
from server.quantization.fp8.stack import ScaledStack
from server.quantization.gptq.packing import pack_columns, unpack_columns
from tests.models.small_models import EVEN, EXPERTS
from tests.models.small_models import save as save_floats
from tests.quantization.checkpoints import Form, published_formula, random_layer
from tests.quantization.others import declare, make, save
from tests.quantization.stacks import random_stack
from tests.quantization.test_other_formats import MADE, answers, engine, static, transformers_answers
from tools.size import weight_bytes

CPU = torch.device("cpu")
SIZES = (
    EVEN
    | EXPERTS
    | {"hidden_size": 128, "head_dim": 32, "moe_intermediate_size": 64, "intermediate_size": 128}
)
CODES = {"awq", "W4A16", "W4A16 asymmetric", "W4A16 by output", "W8A16"}
"""With which the C++ kernels multiply."""


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = SIZES | {"norm_topk_prob": True, "mlp_only_layers": [1]}
    return save_floats(tmp_path_factory.mktemp("qwen3_moe"), "qwen3_moe", fields)


@pytest.mark.parametrize("what", sorted(CODES | {"W8A8", "FP8 by output", "FP8 by tensor", "FP8 by block"}))
def test_answers_are_those_of_the_floats(what: str, floats: Path, tmp_path: Path) -> None:
    path, dequantized = make(floats, tmp_path, *MADE[what])
    served = engine(path)
    assert answers(served) == transformers_answers(dequantized)
    weights = served.capabilities["weights"]
    if what in CODES:
        bits = 8 if what == "W8A16" else 4
        assert weights["name"].startswith(f"native-int{bits} ") and "experts of 2" in weights["name"]
    else:
        assert weights["name"] == "float32" and "dequantized when loaded" in weights["reason"]


@pytest.mark.parametrize("what", ["W8A8", "FP8 by output", "FP8 by tensor"])
def test_numbers_of_8_bits_are_kept_where_a_device_multiplies_them(
    what: str, floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FP8 beside dense layers that become floats, as those quantize no activations: the same answers."""
    monkeypatch.setattr("server.models.load.objection", lambda *_: None)
    monkeypatch.setattr("server.models.load.objection_to_experts", lambda *_: None)
    path, dequantized = make(floats, tmp_path, *MADE[what])
    config = ModelConfig.load(path)
    model, _ = load_model(ModelSource(path, quantization=Quantization("auto")), config, torch.float32, CPU)
    assert sum(isinstance(module, ScaledStack) for module in model.modules()) == 4
    held = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    predicted = weight_bytes(path, config, torch.float32)
    assert predicted == pytest.approx(sum(held.values()), rel=0.05)
    served = engine(path)
    assert answers(served) == transformers_answers(dequantized)
    name = "int8" if what == "W8A8" else "fp8"
    assert f"{name} (experts)" in served.capabilities["weights"]["name"]


# -- GPTQ, whose inputs may be in another order ----------------------------------------------------


def gptq_of(floats: Path, out: Path, form: Form) -> tuple[Path, Path]:
    """(random codes in the place of every projection, the floats that they stand for)."""
    stored, plain = {}, {}
    orders: dict[str, Tensor] = {}
    for seed, (name, tensor) in enumerate(sorted(load_file(floats / "model.safetensors").items())):
        if "_proj.weight" not in name:
            stored[name] = plain[name] = tensor
            continue
        outputs, inputs = tensor.shape
        parts = random_layer(form, inputs, outputs, seed)
        # projections of one input are quantized with the same activations
        joint = name.replace("gate_proj", "up_proj").replace("k_proj", "q_proj").replace("v_proj", "q_proj")
        parts["g_idx"] = orders.setdefault(joint, parts["g_idx"]).clone()
        stored |= {f"{name.removesuffix('weight')}{part}": value for part, value in parts.items()}
        plain[name] = torch.from_numpy(published_formula(form, parts)).float()
    paths = out / "quantized", out / "float"
    for path, tensors in zip(paths, (stored, plain), strict=True):
        shutil.copytree(floats, path)
        save({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    declare(paths[0], form.config())
    return paths


@pytest.mark.parametrize(
    "form", [Form(), Form(desc_act=True), Form(8, 64, sym=False), Form(4, -1, sym=False, version=2)], ids=str
)
def test_gptq(form: Form, floats: Path, tmp_path: Path) -> None:
    path, dequantized = gptq_of(floats, tmp_path, form)
    served = engine(path, quantization="auto")
    assert answers(served) == transformers_answers(dequantized)
    assert served.capabilities["weights"]["name"].startswith(f"native-int{form.bits} ")


@pytest.mark.parametrize(
    "form", [Form(), Form(desc_act=True, sym=False), Form(8, 64, sym=False)], ids=["4", "in an order", "8"]
)
def test_codes_give_the_same_bits_in_any_company(form: Form, floats: Path, tmp_path: Path) -> None:
    path, _ = gptq_of(floats, tmp_path, form)
    served = engine(path, quantization="auto", torch_dtype="bfloat16")
    assert served.capabilities["same_bits"]["promised"]
    answerer = Answerer(served)
    asked = [
        Asked(str(length), [(13 * i + length) % 500 + 3 for i in range(length)], {"max_new_tokens": 12})
        for length in (40, 5, 33, 18, 9)
    ]
    alone, together = answerer.answer(asked, 1), answerer.answer(asked, len(asked))
    assert [name for name, told in together.items() if told.part_from(alone[name]) is not None] == []


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("ordered", [True, False])
def test_the_layout_for_kernels_holds_the_same_weights(bits: int, ordered: bool) -> None:
    from server.quantization.gptq.kernels.triton_codes import dequantize

    options: dict[str, Any] = {"symmetric": False, "ordered": ordered, "dtype": torch.float16, "device": CPU}
    stack = random_stack((3, 64, 256), bits, 64, **options)
    stack.settle(CPU)
    expected = [stack[expert] for expert in range(3)]
    stack.pack_for_triton()
    assert stack.words is not None and stack.factors is not None and stack.qweight is None
    for expert, weight in enumerate(expected):
        words, factors = stack.words[expert], stack.factors[expert]
        found = dequantize(words, factors, bits, 64, torch.float16, torch.float16)
        if stack.order is not None:
            found = torch.empty_like(found).index_copy_(1, stack.order[expert], found)
        assert torch.equal(found, weight)


# -- split over ranks --------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["outputs", "inputs"])
def test_ranks_have_their_parts_of_an_expert(split: Any) -> None:
    parts = 2 if split == "outputs" else 1
    options: dict[str, Any] = {"parts": parts, "symmetric": False, "dtype": torch.float32, "device": CPU}
    whole = random_stack((2, 128, 256), 4, 64, **options)
    shape = (2, 64, 256) if split == "outputs" else (2, 128, 128)
    ranks = [random_stack(shape, 4, 64, **options) for _ in range(2)]
    for rank, own in enumerate(ranks):
        for expert in range(2):
            for part in range(parts):
                stored = whole.targets(split, expert, part)
                for kind, target in own.targets(split, expert, part).items():
                    assert target.stored_shape(2) == stored[kind].tensor.shape
                    target.tensor.copy_(target.shard(stored[kind].tensor, rank, 2))
    for stack in (whole, *ranks):
        stack.settle(CPU)
    for expert in range(2):
        if split == "outputs":
            halves = [own[expert].chunk(2) for own in ranks]
            joined = torch.cat([half[part] for part in range(2) for half in halves])
        else:
            joined = torch.cat([own[expert] for own in ranks], 1)
        assert torch.equal(joined, whole[expert])


@pytest.mark.parametrize("block", [None, 32])
def test_ranks_have_their_parts_of_scaled_experts(block: int | None) -> None:
    options: dict[str, Any] = {
        "stored": torch.int8, "block": block, "dtype": torch.float32, "device": CPU
    }  # fmt: skip
    whole, own = ScaledStack((2, 128, 64), 2, **options), ScaledStack((2, 64, 64), 2, **options)
    whole.weight.random_(-127, 128)
    whole.weight_scale.uniform_(0.1, 1.0)
    halves = []
    for rank in range(2):
        for part in range(2):
            stored = whole.targets("outputs", 1, part)
            for kind, target in own.targets("outputs", 1, part).items():
                target.tensor.copy_(target.shard(stored[kind].tensor, rank, 2))
        halves.append(own[1].chunk(2))
    joined = torch.cat([half[part] for part in range(2) for half in halves])
    assert torch.equal(joined, whole[1])


# -- what is refused ---------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    source = ModelSource(path, quantization=Quantization("auto"))
    with pytest.raises(ModelError) as caught:
        model, _ = load_model(source, ModelConfig.load(path), torch.float32, CPU)
        for module in model.modules():
            if isinstance(module, ExpertStack):
                module.settle(CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_experts_of_which_some_are_floats(floats: Path, tmp_path: Path) -> None:
    path, dequantized = make(floats, tmp_path, *MADE["awq"])
    tensors, plain = (load_file(each / "model.safetensors") for each in (path, dequantized))
    layer = "model.layers.2.mlp.experts.3.down_proj"
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(layer)}
    save(kept | {f"{layer}.weight": plain[f"{layer}.weight"]}, path)
    assert "only some of model.layers.2.mlp.experts.0.down_proj" in refusal(path)


def test_experts_that_a_format_does_not_keep(
    floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenGPTQ, "stack", OpenFormat.stack)
    path, _ = make(floats, tmp_path, *MADE["awq"])
    name = "model.layers.0.mlp.experts.0.gate_proj"
    assert refusal(path).endswith(f"quantized experts ({name}) are not supported")


def test_zero_points_that_contradict_the_configuration(floats: Path, tmp_path: Path) -> None:
    path, _ = gptq_of(floats, tmp_path, Form())
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.experts.1.up_proj.qzeros"
    zeros = unpack_columns(tensors[name], 4)
    zeros[0, 3] = 2
    save(tensors | {name: pack_columns(zeros, 4)}, path)
    assert "but sym is true" in refusal(path)


def test_the_static_server_points_to_the_other_one(floats: Path, tmp_path: Path) -> None:
    path, _ = make(floats, tmp_path, *MADE["awq"])
    with pytest.raises(ModelError, match=r"experts that stay quantized .* continuous batching serves them"):
        static(path)


def test_orders_of_gate_and_up_that_differ(floats: Path, tmp_path: Path) -> None:
    path, _ = gptq_of(floats, tmp_path, Form(desc_act=True))
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.experts.1.up_proj.g_idx"
    save(tensors | {name: tensors[name].flip(0).contiguous()}, path)
    assert "in another order than those of its neighbours" in refusal(path)


def test_sizes_that_no_kernel_of_a_gpu_takes() -> None:
    with pytest.raises(ModelError, match="192 inputs are no multiple of 128"):
        random_stack((2, 64, 192), 4, 64, symmetric=True, dtype=torch.float16, device=torch.device("cuda"))


def test_scales_of_mxfp4_that_kernels_do_not_take() -> None:
    stack = Microscaled(2, 4, 64, dtype=torch.bfloat16, device=CPU)
    stack.scales.fill_(128)
    stack.settle(torch.device("cuda"))
    stack.scales[1, 2, 0] = 129
    stack.settle(CPU)
    with pytest.raises(
        ModelError, match=r"a scale of experts in MXFP4 is 2\*\*2, but kernels take at most 2\*\*1"
    ):
        stack.settle(torch.device("cuda"))
