"""Loading: every option of the worker's configuration is honoured, or refused with a reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from server.checkpoints.errors import ModelError
from server.static_batching import tryout
from server.static_batching.config import ServerConfig, WorkerConfig
from server.static_batching.model import LoadedModel, load_model
from tests.checkpoints import tiny_llama, tiny_tokenizer


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A copy of the model to be damaged."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def load(path: Path, **options: Any) -> LoadedModel:
    return load_model(WorkerConfig(model_name_or_path=str(path), device="cpu", **options))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_dtype(llama: Path, dtype: str) -> None:
    assert load(llama, torch_dtype=dtype).hf.dtype == getattr(torch, dtype)


def test_dtype_auto_is_the_checkpoints(llama: Path, tmp_path: Path) -> None:
    assert load(llama).hf.dtype == torch.float32
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    half = Path(shutil.copytree(llama, tmp_path / "half"))
    model.save_pretrained(half)
    assert load(half).hf.dtype == torch.bfloat16


def test_what_is_computed_in_another_type_is_told_or_refused(copy: Path) -> None:
    """Code of a checkpoint's own may fix the type of its weights."""
    (copy / "custom.py").write_text(
        "import torch\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
        "    def __init__(self, config):\n        super().__init__(config)\n        self.norms() if "
        "config.few else self.float()\n"
        "    def norms(self):\n        self.model.norm.float(), self.lm_head.float()\n"
    )
    config = json.loads((copy / "config.json").read_text()) | {
        "model_type": "own",
        "architectures": ["Model"],
    }
    config["auto_map"] = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}
    (copy / "config.json").write_text(json.dumps(config | {"few": True}))
    told = load(copy, trust_remote_code=True, torch_dtype="bfloat16").capabilities["dtype"]
    assert told["name"] == "bfloat16" and "keeps float32 (32832 values)" in told["reason"]
    (copy / "config.json").write_text(json.dumps(config | {"few": False}))
    message = refusal(copy, trust_remote_code=True, torch_dtype="bfloat16")
    assert "torch_dtype is bfloat16, but the model computes in float32" in message


def test_a_dtype_that_the_device_cannot_compute(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    monkeypatch.setattr(tryout, "_logits", fail)
    message = refusal(llama, torch_dtype="float16")
    assert "float16" in message and "cpu" in message and "not implemented for 'Half'" in message


def test_a_model_that_computes_nan(copy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(copy)
    model.lm_head.weight.data[3, 5] = float("nan")
    model.save_pretrained(copy)
    assert "NaN" in refusal(copy)


def test_no_cuda(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="no CUDA device"):
        load_model(WorkerConfig(model_name_or_path=str(llama), device="cuda"))
    assert load_model(WorkerConfig(model_name_or_path=str(llama))).device.type == "cpu"


def test_weight_formats(copy: Path) -> None:
    safetensors = load(copy, use_safetensors=False)
    assert safetensors.capabilities["weights"]["name"] == "safetensors"
    state = safetensors.hf.state_dict()
    torch.save({name: tensor * 2 for name, tensor in state.items()}, copy / "pytorch_model.bin")
    pickled = load(copy, use_safetensors=False)
    assert pickled.capabilities["weights"]["name"] == "pickle"
    assert torch.equal(pickled.hf.lm_head.weight, 2 * safetensors.hf.lm_head.weight)
    assert torch.equal(load(copy, use_safetensors=True).hf.lm_head.weight, safetensors.hf.lm_head.weight)
    (copy / "model.safetensors").unlink()
    assert "safetensors" in refusal(copy, use_safetensors=True)


def test_corrupt_and_missing_files(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be loaded" in refusal(copy)
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(copy)
    (copy / "config.json").write_text(config)
    (copy / "tokenizer.json").unlink()
    assert "tokenizer" in refusal(copy)


def test_tokenizer_of_its_own(llama: Path, copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    assert load(copy, tokenizer_name_or_path=str(llama)).tokenizer.encode("Hi")


def test_trust_remote_code(copy: Path) -> None:
    (copy / "custom.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["Model"]}
    config["auto_map"] = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}
    (copy / "config.json").write_text(json.dumps(config))
    assert "trust_remote_code" in refusal(copy)
    assert type(load(copy, trust_remote_code=True).hf).__name__ == "Model"


@pytest.mark.parametrize("by", ["option", "config", "file"])
def test_gptq_is_refused_by_name(copy: Path, by: str) -> None:
    if by == "config":
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(
            json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
        )
    if by == "file":
        (copy / "quantize_config.json").write_text("{}")
    message = refusal(copy, is_gptq_quantized=by == "option")
    assert "GPTQ" in message if by == "option" else "set quantization to 'gptq'" in message


def test_context_length(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load(llama).max_length == 256
    assert load(llama, model_max_length=100).max_length == 100
    assert not caplog.records
    assert load(llama, model_max_length=1000).max_length == 1000  # as the other server has it
    assert "made for 256 tokens" in caplog.text


def test_positions_that_a_model_does_not_have_are_refused(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path)
    config = GPT2Config(vocab_size=512, n_positions=64, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert "model_max_length 65 is above the model's 64" in refusal(tmp_path, model_max_length=65)


def test_yarn_reaches_as_far_as_it_scales(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    path = tiny_llama(tmp_path, max_position_embeddings=128, rope_parameters=yarn)
    assert load(path, model_max_length=512).max_length == 512
    assert not [record for record in caplog.records if record.name.startswith("server.")]


def test_checkpoint_defaults_do_not_leak_into_requests(copy: Path) -> None:
    defaults = {"eos_token_id": [1, 7], "do_sample": True, "repetition_penalty": 3.0, "max_new_tokens": 2}
    (copy / "generation_config.json").write_text(json.dumps(defaults))
    model = load(copy)
    assert model.eos_token_ids == [1, 7]
    assert model.hf.generation_config.repetition_penalty is None
    assert model.hf.generation_config.do_sample is None


def test_numbers_may_be_quoted() -> None:
    config = ServerConfig.model_validate(
        {
            "batcher_config": {"package_max_workload": "16", "packaging_interval_seconds": 2},
            "worker_config": {"model_name_or_path": "some/model", "batch_size": -1},
        }
    )
    assert config.batcher_config.package_max_workload == 16


@pytest.mark.parametrize("size", [0, -2])
def test_batch_size_is_checked(size: int) -> None:
    with pytest.raises(ValidationError, match="batch_size"):
        WorkerConfig(model_name_or_path="some/model", batch_size=size)
