"""GPTQ checkpoints whose tensors contradict what they declare: both servers refuse them in the same words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from server.static_batching.config import WorkerConfig
from server.static_batching.model import load_model
from tests.checkpoints import tiny_llama
from tests.quantization.models import change_config, quantized, shuffle_groups

LAYER = "model.layers.0.mlp.up_proj"
EIGHTS = -0x77777778
"""An int32 of codes of 8."""

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Quantized in groups of 32 inputs: symmetric (format v1), and not (v2)."""
    path = tmp_path_factory.mktemp("models")
    llama = tiny_llama(path / "float", layers=1, hidden=64)
    return {sym: quantized(llama, path / f"sym-{sym}", group_size=32, sym=sym) for sym in (True, False)}


@pytest.fixture
def symmetric(models: dict[bool, Path], tmp_path: Path) -> Path:
    return shutil.copytree(models[True], tmp_path / "symmetric")


@pytest.fixture
def asymmetric(models: dict[bool, Path], tmp_path: Path) -> Path:
    return shutil.copytree(models[False], tmp_path / "asymmetric")


def by_engine(path: Path) -> None:
    loading = {"torch_dtype": "float32", "device": "cpu", "quantize_method": "gptq"}
    LLM(path, model_loading_config=loading, cache_config={"num_blocks": 16})


def by_worker(path: Path) -> None:
    load_model(WorkerConfig(model_name_or_path=str(path), device="cpu", is_gptq_quantized=True))


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as engine_error:
        by_engine(path)
    with pytest.raises(ModelError) as static_error:
        by_worker(path)
    assert str(engine_error.value) == str(static_error.value)
    assert "\n" not in str(engine_error.value)
    return str(engine_error.value)


def change(path: Path, change: Callable[[Tensors], Any]) -> None:
    """Let `change` alter the tensors in place."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def test_what_agrees_is_served(symmetric: Path, asymmetric: Path) -> None:
    for path in (symmetric, asymmetric):
        by_engine(path)
        by_worker(path)


@pytest.mark.parametrize("sym", [True, False, None], ids=["sym", "asymmetric", "not said"])
def test_zero_points_stored_as_8_in_format_v1(symmetric: Path, sym: bool | None) -> None:
    """All of them one beside the middle: as symmetric zero points are in v2."""
    change(symmetric, lambda tensors: [t.fill_(EIGHTS) for n, t in tensors.items() if n.endswith("qzeros")])
    change_config(symmetric, sym=sym)
    said = "qzeros: as checkpoint_format 'gptq' has it, all zero points are 9; as 'gptq_v2' they would be 8"
    assert said in refusal(symmetric)
    change_config(symmetric, checkpoint_format="gptq_v2")
    by_engine(symmetric)


def test_zero_points_stored_as_7_in_format_v2(symmetric: Path) -> None:
    change_config(symmetric, checkpoint_format="gptq_v2")
    assert "as checkpoint_format 'gptq_v2' has it, all zero points are 7" in refusal(symmetric)


def test_one_layer_of_another_format_than_the_rest(symmetric: Path) -> None:
    change(symmetric, lambda tensors: tensors[f"{LAYER}.qzeros"].fill_(EIGHTS))
    assert refusal(symmetric).startswith(f"{LAYER}.qzeros: ")


def test_zero_points_that_are_not_symmetric(asymmetric: Path) -> None:
    change_config(asymmetric, sym=True)
    assert "but sym is true, so that all are 8" in refusal(asymmetric)


def test_inputs_out_of_order_without_desc_act(symmetric: Path) -> None:
    shuffle_groups(symmetric, {"up_proj": 1})
    by_engine(symmetric)
    change_config(symmetric, desc_act=False)
    assert f"{LAYER}.g_idx is not in order, but desc_act is false" in refusal(symmetric)


def test_desc_act_without_an_order(symmetric: Path) -> None:
    change(symmetric, lambda tensors: [tensors.pop(n) for n in list(tensors) if n.endswith("g_idx")])
    by_engine(symmetric)
    change_config(symmetric, desc_act=True)
    assert "desc_act is true, but the checkpoint holds no" in refusal(symmetric)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_that_are_not_finite(symmetric: Path, value: float) -> None:
    change(symmetric, lambda tensors: tensors[f"{LAYER}.scales"][0, 3:4].fill_(value))
    assert f"{LAYER}.scales holds values that are not finite" in refusal(symmetric)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"group_size": 64}, "bits 4 and group_size 64 make [2, 8] of a qweight of [16, 64]"),
        ({"group_size": -1}, "bits 4 and group_size -1 make [1, 8] of a qweight of [16, 64]"),
        ({"bits": 8}, "bits 8 and group_size 32 make [2, 16] of a qweight of [16, 64]"),
        ({"desc_act": "false"}, "desc_act is 'false', expected true or false"),
        ({"sym": 1}, "sym is 1, expected true or false"),
        ({"bits": 4.0}, "bits is 4.0, supported: 4, 8"),
        ({"format": "gptq_v2"}, "checkpoint_format is 'gptq', but format is 'gptq_v2'"),
    ],
    ids=str,
)
def test_declarations(symmetric: Path, fields: dict[str, Any], said: str) -> None:
    change_config(symmetric, **fields)
    assert said in refusal(symmetric)


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda t: t.pop(f"{LAYER}.qzeros"), f"holds {LAYER}.qweight, but no {LAYER}.qzeros"),
        (lambda t: t.update({f"{LAYER}.weight": torch.ones(2)}), f"but {LAYER}.weight is stored, too"),
        (
            lambda t: t.update({f"{LAYER}.qweight": t[f"{LAYER}.qweight"].long()}),
            f"{LAYER}.qweight is of type I64, expected I32",
        ),
        (
            lambda t: t.update({f"{LAYER}.g_idx": t[f"{LAYER}.g_idx"][:-1].clone()}),
            f"{LAYER}.g_idx has shape [63]",
        ),
        (lambda t: t[f"{LAYER}.g_idx"].fill_(0), f"{LAYER}.g_idx does not form groups of 32 inputs"),
    ],
    ids=["no zero points", "a float weight", "words of 64 bits", "a short order", "one group"],
)
def test_tensors(symmetric: Path, alter: Callable[[Tensors], Any], said: str) -> None:
    change(symmetric, alter)
    assert said in refusal(symmetric)


@pytest.mark.parametrize(
    ("key", "value"),
    [("bits", 8), ("group_size", 64), ("desc_act", True), ("sym", False), ("checkpoint_format", "gptq_v2")],
)
def test_two_configurations_of_one_checkpoint(symmetric: Path, key: str, value: Any) -> None:
    file = symmetric / "quantize_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert f"{file}: {key} is {value!r}, but quantization_config in" in refusal(symmetric)


def test_an_index_that_contradicts_its_files(symmetric: Path) -> None:
    places = dict.fromkeys(load_file(symmetric / "model.safetensors"), "weights.safetensors")
    (symmetric / "model.safetensors").rename(symmetric / "weights.safetensors")
    index = symmetric / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    by_engine(symmetric)
    for placed, said in (
        ("gone.safetensors", "no such file"),
        ("../x.safetensors", "outside of the directory"),
    ):
        index.write_text(json.dumps({"metadata": {}, "weight_map": places | {f"{LAYER}.g_idx": placed}}))
        assert f"places '{LAYER}.g_idx' in '{placed}'" in (message := refusal(symmetric)) and said in message


def test_a_stray_file_beside_the_weights(symmetric: Path) -> None:
    save_file({"lora_A.weight": torch.ones(2)}, symmetric / "adapter_model.safetensors")
    by_engine(symmetric)
    by_worker(symmetric)
