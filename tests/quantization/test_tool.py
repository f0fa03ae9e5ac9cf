"""tools/quantize.py makes checkpoints that say what they are and are as exact as their codes allow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from server.checkpoints.errors import ModelError
from server.quantization.gptq.checkpoint import GPTQCheckpoint
from tests.checkpoints import tiny_llama
from tests.quantization.checkpoints import filled_linear
from tools.quantize import choose_method
from tools.round_to_nearest import Recipe, linear_layers, quantize_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), hidden=128)


@pytest.mark.parametrize(
    "recipe",
    [Recipe(4, 32), Recipe(4, 128, sym=False), Recipe(4, -1), Recipe(8, 64, sym=False), Recipe(8, 32)],
    ids=str,
)
def test_weights_are_rounded_to_the_nearest(llama: Path, recipe: Recipe, tmp_path: Path) -> None:
    quantize_checkpoint(llama, tmp_path, recipe)
    floats = load_file(llama / "model.safetensors")
    checkpoint = GPTQCheckpoint.open(tmp_path)
    assert len(checkpoint.layers) == 14
    for layer in checkpoint.layers:
        (weight,) = filled_linear(checkpoint, [layer]).quantized_weights()
        error = (weight.dequantized(torch.float32) - floats[f"{layer}.weight"]).abs()
        steps = weight.scales.float().t().repeat_interleave(weight.group_size, dim=1)
        # half a step, and as much again where the zero point was rounded or the range cut
        assert (error <= steps * (0.6 if recipe.sym else 1.1)).all()
        assert error.mean() < 0.3 * steps.mean()


def test_the_rest_is_as_it_was(llama: Path, tmp_path: Path) -> None:
    quantize_checkpoint(llama, tmp_path, Recipe(4, 32))
    before, after = (load_file(path / "model.safetensors") for path in (llama, tmp_path))
    for name, tensor in before.items():
        if name.removesuffix(".weight") not in linear_layers(llama):
            assert torch.equal(after[name], tensor)
    assert (tmp_path / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("quantization_config")["meta"] == {"quantizer": ["round-to-nearest"]}
    assert config == json.loads((llama / "config.json").read_text())


def test_shards_keep_their_files(llama: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    tensors = load_file(llama / "model.safetensors")
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for place in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == place}, source / place)
    (source / "config.json").write_text((llama / "config.json").read_text())
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    quantize_checkpoint(source, out, Recipe(4, 32))
    checkpoint = GPTQCheckpoint.open(out)
    assert len(checkpoint.files) == 2 and len(checkpoint.layers) == 14
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    for file in checkpoint.files:
        with safe_open(file, framework="pt") as stored:
            assert {index[name] for name in stored.keys()} == {file.name}  # noqa: SIM118


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.quantize", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_command_line(llama: Path, tmp_path: Path) -> None:
    done = run(llama, tmp_path / "q", "--group_size", 32, "--method", "rtn")
    assert done.returncode == 0, done.stderr
    assert "round to nearest" in done.stdout and "14/14" in done.stderr
    again = run(llama, tmp_path / "q", "--method", "rtn")
    assert again.returncode == 1 and again.stderr.endswith("is not empty\n")
    twice = run(tmp_path / "q", tmp_path / "q2", "--method", "rtn")
    assert twice.returncode == 1 and twice.stderr.endswith("is quantized already\n")


def test_what_rounding_cannot_do_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="desc_act needs gptq"):
        quantize_checkpoint(llama, tmp_path / "a", Recipe(desc_act=True))
    narrow = tiny_llama(tmp_path / "narrow", hidden=32)
    with pytest.raises(ModelError, match="inputs are not a multiple of 128"):
        quantize_checkpoint(narrow, tmp_path / "b", Recipe())


def test_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path("text.txt")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_method("auto", text) == "rtn"
    with pytest.raises(ModelError, match="needs gptqmodel"):
        choose_method("gptq", text)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert choose_method("auto", text) == "gptq"
    assert choose_method("auto", None) == "rtn"
    with pytest.raises(ModelError, match="needs --calibration"):
        choose_method("gptq", None)
