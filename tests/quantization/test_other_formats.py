"""AWQ, compressed-tensors, FP8 and MXFP4: bit-equal to the references of each, and served by both servers as
transformers serves the floats that they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching.llm import LLM
from server.layers.microscaled import Microscaled
from server.models.config import ModelConfig
from server.models.load import load_model
from server.models.source import ModelSource
from server.quantization.formats import mxfp4
from server.quantization.formats.base import OpenFormat
from server.quantization.formats.registry import Quantization, open_format
from server.quantization.formats.repacked import OpenRepacked
from server.static_batching.pipeline import StaticPipeline
from tests.checkpoints import tiny_llama, tiny_tokenizer
from tests.quantization.others import awq_layer, compressed, declare, fp8_layer, make, save
from tools.size import weight_bytes

PROMPTS = [[0, 17, 250, 99, 3, 41, 42, 300], [5], [7, 8, 9, 10]]
OPTIONS = GenerationConfig(max_new_tokens=12, ignore_eos=True)

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
W4 = {"num_bits": 4, "type": "int"}
MADE: dict[str, Any] = {
    "awq": (AWQ, awq_layer),
    "W4A16": compressed("pack-quantized", **W4, strategy="group", group_size=32, symmetric=True),
    "W4A16 asymmetric": compressed("pack-quantized", **W4, strategy="group", group_size=64, symmetric=False),
    "W4A16 by output": compressed("pack-quantized", **W4, strategy="channel", symmetric=True),
    "W8A16": compressed(
        "pack-quantized", num_bits=8, type="int", strategy="group", group_size=32, symmetric=True
    ),
    "W8A8": compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=True),
    "FP8 by output": compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    "FP8 by tensor": compressed("float-quantized", num_bits=8, type="float", strategy="tensor"),
    "FP8 by block": compressed(
        "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[32, 64]
    ),
    "fp8": (FP8 | {"weight_block_size": [48, 128]}, fp8_layer((48, 128))),
    "fp8 by tensor": (FP8, fp8_layer(None, name="weight_scale")),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, fp8_layer(None, per_output=True, name="weight_scale")),
}
"""What is made of a float model → (``quantization_config``, what quantizes a layer)."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), hidden=128)


@pytest.fixture(scope="module")
def made(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """(checkpoint, float checkpoint) of each."""
    return {what: make(llama, tmp_path_factory.mktemp("made"), *MADE[what]) for what in MADE}


def opened(path: Path) -> OpenFormat:
    checkpoint = open_format(path, Quantization("auto"))
    assert checkpoint is not None
    return checkpoint


def engine(path: Path, **loading: Any) -> LLM:
    loading = {"torch_dtype": "float32", "device": "cpu"} | loading
    return LLM(path, model_loading_config=loading, cache_config={"num_blocks": 64})


def static(path: Path, **worker: Any) -> StaticPipeline:
    return StaticPipeline(path, worker_config={"torch_dtype": "float32", "device": "cpu"} | worker)


def answers(server: Any) -> list[list[int]]:
    return [generation.answers[0].token_ids for generation in server.generate(PROMPTS, OPTIONS)]


def transformers_answers(path: Path) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    found = []
    for prompt in PROMPTS:
        tokens = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=2)
        found.append(tokens[0, len(prompt) :].tolist())
    return found


def floats_of(checkpoint: OpenFormat) -> dict[str, torch.Tensor]:
    """What the quantized weights of a checkpoint are read as, or multiplied as."""
    if not isinstance(checkpoint, OpenRepacked):
        names = [name for name in checkpoint.tensors if "_proj.weight" in name]
        return dict(checkpoint.read(names, torch.float32))
    found = {}
    for layer in checkpoint.layers:
        words, outputs = checkpoint.tensors[f"{layer}.qweight"].shape
        inputs = words * checkpoint.checkpoint.config.codes_per_word
        cpu = torch.device("cpu")
        linear = checkpoint.linear([layer], inputs, [outputs], dtype=torch.float32, device=cpu)
        for name, target in linear.weights(layer).items():
            ((_, stored),) = checkpoint.read([name], torch.float32)
            target.copy_(stored)
        (weight,) = linear.quantized_weights()
        found[f"{layer}.weight"] = weight.dequantized(torch.float32)
    return found


@pytest.mark.parametrize("what", MADE)
def test_dequantizing_is_bit_equal_to_the_reference(what: str, made: dict[str, tuple[Path, Path]]) -> None:
    path, floats = made[what]
    expected = load_file(floats / "model.safetensors")
    found = floats_of(opened(path))
    assert len(found) == 14
    for name, weight in found.items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("what", MADE)
def test_both_servers_answer_as_transformers_on_the_floats(
    what: str, made: dict[str, tuple[Path, Path]]
) -> None:
    path, floats = made[what]
    expected = transformers_answers(floats)
    for serve in (engine, static):
        served = serve(path)
        assert answers(served) == expected
        weights = served.capabilities["weights"]
        if "A16" not in what and what != "awq":
            assert weights["name"] == "float32" and "dequantized when loaded" in weights["reason"]
        else:
            assert "layers)" in weights["name"] and "float32" not in weights["name"]


def test_repacked_weights_stay_as_small_as_they_were(made: dict[str, tuple[Path, Path]]) -> None:
    for what in ("awq", "W4A16"):
        packed = opened(made[what][0])
        assert isinstance(packed, OpenRepacked)
        sizes = {"I32": 4, "F16": 2, "F32": 4, "BF16": 2, "I64": 8}

        def size(tensors: Any) -> int:
            return sum(torch.Size(t.shape).numel() * sizes[t.dtype] for t in tensors.values())  # noqa: B023

        assert size(packed.tensors) <= 1.03 * size(packed.stored)


def test_mxfp4_is_bit_equal_to_transformers() -> None:
    blocks = torch.randint(0, 256, (3, 24, 4, 16), dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 24, 4), dtype=torch.uint8)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    found = [mxfp4.dequantize(b, s, torch.float32) for b, s in zip(blocks, scales, strict=True)]
    assert torch.equal(torch.stack(found).transpose(1, 2), expected)
    half = torch.stack([mxfp4.dequantize(b, s, torch.bfloat16) for b, s in zip(blocks, scales, strict=True)])
    assert torch.equal(half.transpose(1, 2), expected.bfloat16())


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(gpt-oss in MXFP4, the floats that it stands for by transformers)."""
    root = tmp_path_factory.mktemp("gpt_oss")
    config = GptOssConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        initializer_range=0.2,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    torch.manual_seed(0)
    model = GptOssForCausalLM(config).float()
    for path in (root / "quantized", root / "float"):
        model.save_pretrained(path)
        tiny_tokenizer(path)
    tensors = load_file(root / "float" / "model.safetensors")
    stored = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = tensor.shape
            blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
            scales = torch.randint(122, 126, (experts, outputs, inputs // 32), dtype=torch.uint8)
            tensors[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
            del stored[name]
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save(tensors, root / "float")
    save(stored, root / "quantized")
    declare(root / "quantized", {"quant_method": "mxfp4"})
    return root / "quantized", root / "float"


def test_gpt_oss(gpt_oss: tuple[Path, Path]) -> None:
    path, floats = gpt_oss
    served = static(path)
    assert answers(served) == transformers_answers(floats)
    assert served.capabilities["weights"]["reason"].startswith("MXFP4 in the checkpoint, dequantized")


def test_gpt_oss_with_experts_in_mxfp4(gpt_oss: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept as they are: the same answers, and the bytes that are stored."""
    path, floats = gpt_oss
    monkeypatch.setattr("server.models.load.objection_to_experts", lambda *_: None)
    config = ModelConfig.load(path)
    model, what = load_model(ModelSource(path), config, torch.float32, torch.device("cpu"))
    assert what is None
    kept = [each for each in model.modules() if isinstance(each, Microscaled)]
    assert len(kept) == 4
    stored = load_file(path / "model.safetensors")
    packed = sum(t.nbytes for name, t in stored.items() if name.endswith(("_blocks", "_scales")))
    assert packed == sum(buffer.nbytes for each in kept for buffer in each.buffers())
    held = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    assert weight_bytes(path, config, torch.float32) == pytest.approx(sum(held.values()), rel=0.01)
    served = LLM(path, model_loading_config={"torch_dtype": "float32", "device": "cpu"})
    assert served.capabilities["weights"]["name"] == "mxfp4 (experts)"
    assert answers(served) == transformers_answers(floats)


# -- what is refused -----------------------------------------------------------------------------

CT = MADE["W4A16"][0]
GROUP = CT["config_groups"]["group_0"]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("awq", AWQ | {"version": "gemv"}, "version of an AWQ checkpoint is 'gemv', supported: gemm"),
    ("awq", AWQ | {"bits": 8}, "bits of an AWQ checkpoint is 8, supported: 4"),
    ("awq", AWQ | {"zero_point": False}, "zero_point of an AWQ checkpoint is False"),
    ("awq", AWQ | {"group_size": 64}, "but bits 4 and group_size 64 make"),
    ("W4A16", CT | {"format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized' of compressed-tensors"),
    ("W4A16", CT | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme of compressed-tensors is not"),
    ("W4A16", CT | {"config_groups": {}}, "config_groups that store weights differently"),
    (
        "W4A16",
        CT | {"config_groups": {"a": GROUP, "b": GROUP | {"weights": None}}},
        "config_groups that store weights differently",
    ),
    (
        "W4A16",
        CT | {"config_groups": {"a": GROUP | {"weights": GROUP["weights"] | {"num_bits": 3}}}},
        "num_bits of packed weights is 3, supported: 4, 8",
    ),
    ("fp8", FP8, "does not fit .* the configuration does not say of which blocks"),
    ("fp8", FP8 | {"weight_block_size": [128, 128]}, "does not fit .*: blocks are 128 by 128"),
    ("fp8", FP8 | {"weight_block_size": 128}, "blocks of 128 are not two sizes"),
    ("fp8", {"quant_method": "mxfp4"}, "holds no .*_blocks, though"),
    (
        "awq",
        {"quant_method": "bitsandbytes"},
        r"config\.json: weights quantized by 'bitsandbytes' are not supp",
    ),
]


@pytest.mark.parametrize(("what", "declared", "said"), REFUSED, ids=[f"{a} {c[:30]}" for a, _, c in REFUSED])
def test_what_is_not_supported_is_refused_by_name(
    what: str, declared: dict[str, Any], said: str, made: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    path = tmp_path / "model"
    path.mkdir()
    for file in made[what][0].iterdir():
        (path / file.name).symlink_to(file)
    (path / "config.json").unlink()
    config = json.loads((made[what][0] / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": declared}))
    with pytest.raises(ModelError, match=said) as caught:
        open_format(path, Quantization("auto"))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("what", ["fp8", "W8A8"])
def test_a_weight_without_its_scale(what: str, made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    tensors = load_file(made[what][0] / "model.safetensors")
    name = next(name for name in tensors if "_scale" in name)
    del tensors[name]
    path = tmp_path / "model"
    path.mkdir()
    save(tensors, path)
    (path / "config.json").write_text((made[what][0] / "config.json").read_text())
    with pytest.raises(ModelError, match=f"{name.rpartition('.')[0]}.weight is of type (F8_E4M3|I8), but"):
        open_format(path, Quantization("auto"))
