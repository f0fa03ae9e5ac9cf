"""Scales that a checkpoint brings for a cache in FP8: by which names, and who may have such a cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from server.checkpoints.cache_scales import CacheScales, is_cache_scale
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from server.ops.choose import choose_backend
from tests.ops.shapes import model_of

NAMED = [
    ("self_attn.k_scale", "self_attn.v_scale"),
    ("self_attn.attn.k_scale", "self_attn.attn.v_scale"),
    ("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"),
    ("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale"),
]


def with_scales(model: Path, out: Path, scales: dict[str, Tensor]) -> Path:
    """The checkpoint at `model` with further tensors, at `out`."""
    shutil.copytree(model, out)
    tensors = load_file(model / "model.safetensors") | scales
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("names", NAMED, ids=lambda names: names[0])
def test_names(names: tuple[str, str], tiny_model: Path, tmp_path: Path) -> None:
    scales = {
        f"model.layers.1.{names[0]}": torch.tensor(0.5),
        f"model.layers.1.{names[1]}": torch.tensor([2.0]),
    }
    found = CacheScales.read(with_scales(tiny_model, tmp_path / "model", scales))
    expected = torch.ones(2, 2, 2)
    expected[1, 0], expected[1, 1] = 0.5, 2.0
    assert torch.equal(found.of([0, 1], 2), expected)
    assert found.of([1], 2).shape == (1, 2, 2) and found.origin == "scaled by 2 scales of the checkpoint"
    assert all(is_cache_scale(name) for name in scales)
    for weight in ("k_proj.weight_scale", "k_proj.input_scale", "q_proj.weight", "k_norm.weight"):
        assert not is_cache_scale(f"model.layers.1.self_attn.{weight}")


def test_a_scale_for_each_head(tiny_model: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.k_scale"
    path = with_scales(tiny_model, tmp_path / "heads", {name: torch.tensor([[[0.5]], [[0.25]]])})
    assert CacheScales.read(path).of([0], 2)[0].tolist() == [[0.5, 0.25], [1.0, 1.0]]
    with pytest.raises(ModelError, match=r"k_scale of layer 0 is \[0\.5, 0\.25\]: expected one positive"):
        CacheScales.read(path).of([0], 4)
    path = with_scales(tiny_model, tmp_path / "zero", {name: torch.tensor(0.0)})
    with pytest.raises(ModelError, match=r"k_scale of layer 0 is \[0\.0\]"):
        CacheScales.read(path).of([0], 2)


def test_there_need_be_none(tiny_model: Path) -> None:
    found = CacheScales.read(tiny_model)
    assert torch.equal(found.of([0, 1], 2), torch.ones(2, 2, 2))
    assert found.origin == "no scales in the checkpoint: 1.0"


def test_a_cpu_serves_such_a_checkpoint_and_has_no_such_cache(tiny_model: Path, tmp_path: Path) -> None:
    path = with_scales(
        tiny_model, tmp_path / "model", {"model.layers.0.self_attn.k_scale": torch.tensor(0.5)}
    )
    loading = {"torch_dtype": "float32", "device": "cpu"}
    served = LLM(path, model_loading_config=loading, cache_config={"num_blocks": 8})
    assert served.capabilities["cache_dtype"] == {"name": "float32", "reason": "torch_dtype"}
    with pytest.raises(ModelError, match=r"cache_dtype 'fp8_e4m3' is for NVIDIA GPUs .* \(cpu\) has none"):
        LLM(path, model_loading_config=loading, cache_config={"num_blocks": 8, "cache_dtype": "fp8_e4m3"})
    with pytest.raises(ModelError, match=r"cache_dtype: .*'auto' or 'fp8_e4m3'"):
        LLM(path, model_loading_config=loading, cache_config={"cache_dtype": "fp4"})


def test_which_backends_keep_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, half, float8 = torch.device("cuda"), torch.bfloat16, torch.float8_e4m3fn
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    model = model_of(4, 2, 64)
    chosen = choose_backend(model, half, cuda, 16, "auto", float8).describe()["attention"]
    assert chosen["name"] == "triton"
    with pytest.raises(ModelError, match=r"'xformers' does not run here: it keeps no keys and values in FP8"):
        choose_backend(model, half, cuda, 64, "xformers", float8)
    with pytest.raises(ModelError, match=r"cache_dtype 'fp8_e4m3' cannot be honoured: it does not compute"):
        choose_backend(model_of(4, 2, 64, shares=0), half, cuda, 16, "auto", float8)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ModelError, match=r"compute capability 8\.9"):
        choose_backend(model, half, cuda, 16, "auto", float8)
