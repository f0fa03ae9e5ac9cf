"""Checkpoints are found under all their names, and what cannot be served is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.checkpoints.errors import ModelError
from server.quantization.formats.gptq import GPTQ
from server.quantization.gptq.checkpoint import GPTQCheckpoint
from tests.quantization.checkpoints import Form, filled_linear, random_layer, save_layers


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    layers = {name: random_layer(Form(), 64, 16) for name in ("model.a", "model.b")}
    save_layers(tmp_path, Form(), layers)
    return tmp_path


def change(path: Path, **fields: Any) -> None:
    config = json.loads((path / "quantize_config.json").read_text())
    (path / "quantize_config.json").write_text(json.dumps(config | fields))


def refusal(path: Path, **options: str) -> str:
    with pytest.raises(ModelError) as caught:
        GPTQCheckpoint.open(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_layers_are_found(checkpoint: Path) -> None:
    found = GPTQCheckpoint.open(checkpoint)
    assert found.layers == ["model.a", "model.b"]
    assert found.scales_dtype == torch.float16
    assert found.config.zero_offset == 1


def test_configuration_within_config_json(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "quantize_config.json").read_text())
    (checkpoint / "quantize_config.json").unlink()
    assert "neither quantize_config.json" in refusal_without_config(checkpoint)
    (checkpoint / "config.json").write_text(
        json.dumps({"quantization_config": config | {"checkpoint_format": "gptq_v2"}})
    )
    assert GPTQCheckpoint.open(checkpoint).config.zero_offset == 0


def refusal_without_config(path: Path) -> str:
    (path / "config.json").write_text("{}")
    return refusal(path)


@pytest.mark.parametrize("name", ["model", "gptq_model-4bit-32g", "gptq_model", "anything"])
def test_usual_names_of_the_weights(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / f"{name}.safetensors")
    assert GPTQCheckpoint.open(checkpoint).entry.name == f"{name}.safetensors"


def test_base_names(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "mine.safetensors")
    (checkpoint / "quantize_config.json").rename(checkpoint / "how.json")
    (checkpoint / "quantize_config.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, checkpoint / "model.safetensors")
    names = {"model_base_name": "mine", "config_base_name": "how"}
    assert GPTQCheckpoint.open(checkpoint, **names).layers == ["model.a", "model.b"]
    assert "no other.safetensors" in refusal(checkpoint, **names | {"model_base_name": "other"})
    assert "other.json" in refusal(checkpoint, **names | {"config_base_name": "other"})


def test_shards(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + (name[6] == 'b')}-of-00002.safetensors" for name in tensors}
    for place in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == place}, checkpoint / place)
    assert "name one by gptq_model_base_name" in refusal(checkpoint)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = GPTQCheckpoint.open(checkpoint)
    assert found.layers == ["model.a", "model.b"]
    assert [file.name[:11] for file in found.files] == ["model-00001", "model-00002"]


def test_groups_without_g_idx_are_in_order(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("g_idx")}
    with_g_idx = filled_linear(GPTQCheckpoint.open(checkpoint), ["model.a"]).quantized_weights()
    save_file(kept, checkpoint / "model.safetensors")
    without = filled_linear(GPTQCheckpoint.open(checkpoint), ["model.a"]).quantized_weights()
    assert torch.equal(*(w[0].dequantized(torch.float32) for w in (with_g_idx, without)))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"bits": 2}, "bits is 2, supported: 4, 8"),
        ({"bits": 3}, "bits is 3, supported: 4, 8"),
        ({"bits": None}, "bits is None"),
        ({"group_size": 16}, "group_size is 16, supported: 32, 64, 128, -1"),
        ({"group_size": 1024}, "group_size is 1024"),
        ({"quant_method": "awq"}, "method 'awq' is not supported"),
        ({"checkpoint_format": "marlin"}, "format 'marlin' is not supported"),
        ({"is_marlin_format": True}, "format 'marlin' is not supported"),
        ({"pack_dtype": "int16"}, "pack_dtype 'int16' is not supported"),
        ({"lm_head": True}, "quantized lm_head is not supported"),
        ({"dynamic": {"+:.*down.*": {"bits": 8}}}, "('dynamic', '+:.*down.*') are not supported"),
        ({"meta": {"adapter": {"rank": 8}}}, "adapter beside the weights is not supported"),
    ],
)
def test_variants_are_refused_by_name(checkpoint: Path, fields: dict[str, Any], told: str) -> None:
    change(checkpoint, **fields)
    assert told in refusal(checkpoint)


def test_layers_left_out_are_no_obstacle(checkpoint: Path) -> None:
    change(checkpoint, dynamic={"-:.*lm_head.*": {}})
    assert GPTQCheckpoint.open(checkpoint).layers


def test_a_quantized_lm_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="quantized lm_head is not supported"):
        save_layers(tmp_path, Form(), {"lm_head": random_layer(Form(), 64, 16)})


def test_what_is_no_checkpoint(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"garbage")
    assert "not a readable safetensors file" in refusal(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    assert "holds no *.safetensors file" in refusal(checkpoint)
    (checkpoint / "quantize_config.json").write_text("[]")
    assert "does not hold a JSON object" in refusal(checkpoint)


def test_float_weights_with_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tensor is quantized"):
        save_layers(tmp_path, Form(), {}, weight=torch.zeros(4))


def test_half_quantized_projections_are_refused(checkpoint: Path) -> None:
    found = GPTQ().open(checkpoint, {})
    assert found.quantizes(["model.a", "model.b"]) and not found.quantizes(["model.c"])
    with pytest.raises(ModelError, match=r"only some of model\.a, model\.c are quantized"):
        found.quantizes(["model.a", "model.c"])
