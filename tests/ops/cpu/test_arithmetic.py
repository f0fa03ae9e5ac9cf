"""`cpu_arithmetic` as a configuration has it: what is rounded, what it says, and where it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from server.checkpoints.errors import ModelError
from server.continuous_batching.llm import LLM
from server.ops import choose
from server.ops.cpu.build import NativeError
from tests.checkpoints import tiny_llama
from tests.ops.cpu.test_model import assert_logits
from tests.quantization.gguf_families import make
from tests.quantization.gguf_files import write_gguf


def engine(path: Path, arithmetic: str, dtype: str = "float32") -> LLM:
    loading = {"torch_dtype": dtype, "device": "cpu", "cpu_arithmetic": arithmetic}
    return LLM(path, model_loading_config=loading, cache_config={"num_blocks": 64})


def test_logits_of_rounded_weights_and_activations(tmp_path: Path) -> None:
    """Prompts and decodes; logits are within 8 % of their spread (in bfloat16: 5 %)."""
    path = tiny_llama(tmp_path / "llama", hidden=128, initializer_range=0.1)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    llm = engine(path, "int8")
    weights = llm.capabilities["weights"]
    assert weights["name"] == "native-int8 (9 layers)"
    assert "9 matrices of floats are rounded to 8 bits" in weights["reason"]
    assert "cpu_arithmetic is int8" in weights["reason"]
    torch.manual_seed(7)
    prompts = [torch.randint(3, 500, (length,)).tolist() for length in (70, 33, 1)]
    assert_logits(llm, model, prompts, 8e-2)


def test_blocks_of_gguf_are_not_rounded_again(tmp_path: Path) -> None:
    path = write_gguf(tiny_llama(tmp_path / "llama"), tmp_path / "tiny.gguf", "Q8_0")
    weights = engine(path, "int8", "bfloat16").capabilities["weights"]
    assert weights["name"] == "native-int8 (9 layers)"
    assert weights["reason"] == "activations are rounded to 8 bits (cpu_arithmetic is int8)"


def test_experts_are_refused(tmp_path: Path) -> None:
    path = make("qwen3_moe", tmp_path / "experts")
    with pytest.raises(ModelError, match=r"cpu_arithmetic 'int8' cannot be honoured.*experts"):
        engine(path, "int8")


def test_it_needs_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NativeError("no C++ compiler is installed")

    monkeypatch.setattr(choose, "load", refuse)
    with pytest.raises(ModelError, match=r"cpu_arithmetic 'int8' cannot be honoured.*no C\+\+ compiler"):
        engine(tiny_llama(tmp_path / "llama"), "int8")
