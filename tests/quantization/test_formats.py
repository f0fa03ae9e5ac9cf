"""A weight format added as `docs/extending.md` says, and which format a configuration asks for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from server.quantization.formats.registry import FORMATS
from server.static_batching.pipeline import StaticPipeline
from tests.checkpoints import tiny_llama
from tests.quantization.models import quantized

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
PROMPTS = [[3 + 37 * i % 500, 5, 17, 250, 99][: 2 + i % 4] for i in range(8)]
OPTIONS = GenerationConfig(max_new_tokens=16, ignore_eos=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gptq(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized(llama, tmp_path_factory.mktemp("gptq") / "model", group_size=32)


@pytest.fixture
def int8(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint in the page's format, which is registered."""
    section = PAGE.read_text(encoding="utf-8").split("## A weight format\n")[1]
    code = re.findall(r"```python\n(.*?)```", section, re.S)[0]
    (tmp_path / "int8_rows_of_the_page.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(FORMATS, "int8_rows", "int8_rows_of_the_page:Int8Rows")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(llama / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        scale = tensor.abs().amax(dim=1, keepdim=True) / 127
        tensors |= {name: (tensor / scale).round().to(torch.int8), f"{name}_scale": scale}
    path = tmp_path / "int8"
    shutil.copytree(llama, path)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    declare(path, "int8_rows")
    return path


def declare(path: Path, method: str) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))


def dequantized_answers(path: Path, out: Path) -> list[list[int]]:
    """What transformers generates with the floats that the checkpoint in `path` stands for."""
    tensors = load_file(path / "model.safetensors")
    scales = {name: tensors.pop(name) for name in list(tensors) if name.endswith("_scale")}
    for name, scale in scales.items():
        weight = name.removesuffix("_scale")
        tensors[weight] = tensors[weight] * scale
    shutil.copytree(path, out)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    answers = []
    for prompt in PROMPTS:
        found = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, pad_token_id=2)
        answers.append(found[0, len(prompt) :].tolist())
    return answers


def engine(path: Path, **loading: Any) -> LLM:
    loading = {"torch_dtype": "float32", "device": "cpu"} | loading
    return LLM(path, model_loading_config=loading, cache_config={"num_blocks": 64})


def static(path: Path, **worker: Any) -> StaticPipeline:
    return StaticPipeline(path, worker_config={"torch_dtype": "float32", "device": "cpu"} | worker)


@pytest.mark.parametrize("quantization", ["int8_rows", "auto"])
@pytest.mark.parametrize("server", [engine, static])
def test_the_page_adds_a_format(server: Any, quantization: str, int8: Path, tmp_path: Path) -> None:
    served = server(int8, quantization=quantization)
    assert served.capabilities["weights"]["name"].startswith("int8_rows (")
    answers = [generation.answers[0].token_ids for generation in served.generate(PROMPTS, OPTIONS)]
    assert answers == dequantized_answers(int8, tmp_path / "float")


@pytest.mark.parametrize("server", [engine, static])
def test_headers_of_another_type_are_refused(server: Any, int8: Path, tmp_path: Path) -> None:
    tensors = load_file(int8 / "model.safetensors")
    tensors = {name: t.float() if t.dtype == torch.int8 else t for name, t in tensors.items()}
    save_file(tensors, int8 / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"but no model\.layers\.\d\..*\.weight of type I8"):
        server(int8, quantization="auto")


@pytest.mark.parametrize("server", [engine, static])
def test_codes_without_scales_are_refused(server: Any, int8: Path) -> None:
    """They are not cast to floats."""
    tensors = load_file(int8 / "model.safetensors")
    for name in ("gate_proj", "up_proj"):
        del tensors[f"model.layers.1.mlp.{name}.weight_scale"]
    save_file(tensors, int8 / "model.safetensors", metadata={"format": "pt"})
    said = r"model\.layers\.1\.mlp\.(gate|up)_proj\.weight is of type I8, but"
    with pytest.raises(ModelError, match=said):
        server(int8, quantization="auto")


@pytest.mark.parametrize("quantization", [None, "none"])
@pytest.mark.parametrize("server", [engine, static])
def test_quantized_weights_that_are_not_said_to_be(
    server: Any, quantization: str | None, int8: Path, gptq: Path
) -> None:
    for path, name in ((int8, "int8_rows"), (gptq, "gptq")):
        with pytest.raises(
            ModelError, match=rf"quantized \({name}\): set quantization to '{name}' or 'auto'"
        ):
            server(path, quantization=quantization)


@pytest.mark.parametrize("server", [engine, static])
@pytest.mark.parametrize("quantization", ["gptq", "auto"])
def test_one_key_for_both_servers(server: Any, quantization: str, gptq: Path) -> None:
    served = server(gptq, quantization=quantization)
    assert "(14 layers)" in (name := served.capabilities["weights"]["name"]) or "(8 layers)" in name


@pytest.mark.parametrize("server", [engine, static])
@pytest.mark.parametrize("quantization", [None, "none", "auto"])
def test_floats(server: Any, quantization: str | None, llama: Path) -> None:
    assert server(llama, quantization=quantization).capabilities["weights"]["name"] in (
        "float32",
        "safetensors",
    )


@pytest.mark.parametrize("server", [engine, static])
def test_floats_that_are_said_to_be_quantized(server: Any, llama: Path) -> None:
    with pytest.raises(ModelError, match="is not a GPTQ checkpoint"):
        server(llama, quantization="gptq")


@pytest.mark.parametrize("server", [engine, static])
def test_a_method_that_contradicts_the_configuration(server: Any, gptq: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(gptq, tmp_path / "model"))
    declare(path, "awq")
    said = "quantization is 'gptq', but .*config.json says that the weights are quantized by 'awq'"
    with pytest.raises(ModelError, match=said):
        server(path, quantization="gptq")


@pytest.mark.parametrize(("server", "quantization"), [(engine, None), (engine, "auto"), (static, "none")])
def test_a_method_that_is_no_format_here(
    server: Any, quantization: str | None, llama: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(llama, tmp_path / "model"))
    declare(path, "hqq")
    with pytest.raises(ModelError, match=r"weights quantized by 'hqq' are not supported \(supported: .*gptq"):
        server(path, quantization=quantization)


@pytest.mark.parametrize(
    ("server", "keys", "said"),
    [
        (
            engine,
            {"quantization": "none", "quantize_method": "gptq"},
            "'none', but quantize_method is 'gptq'",
        ),
        (
            engine,
            {"quantization": "auto", "quantize_method": "gptq"},
            "'auto', but quantize_method is 'gptq'",
        ),
        (
            static,
            {"quantization": "none", "is_gptq_quantized": True},
            "'none', but is_gptq_quantized is true",
        ),
        (engine, {"quantization": "gpqt"}, "'auto', 'none', .*'gptq'"),
        (static, {"quantization": "gpqt"}, "'auto', 'none', .*'gptq'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_keys_that_contradict_each_other(server: Any, keys: dict[str, Any], said: str, llama: Path) -> None:
    with pytest.raises(ModelError, match=said):
        server(llama, **keys)


@pytest.mark.parametrize("key", ["gptq_model_base_name", "gptq_config_base_name"])
def test_keys_of_a_format_that_is_not_read(key: str, llama: Path, int8: Path) -> None:
    with pytest.raises(ModelError, match=f"{key} is set, but the weights in .* are read as int8_rows"):
        engine(int8, quantization="auto", **{key: "model"})
    with pytest.raises(ModelError, match=f"{key} is set, but the weights in .* are read as floats"):
        engine(llama, quantization="none", **{key: "model"})
