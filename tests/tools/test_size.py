"""What `tools.size` calculates, beside what a server allocates and what the example configurations say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from server.layers.cache_spec import cache_specs
from server.models.config import ModelConfig
from server.models.linears import QuantizedLinears
from server.models.load import load_model
from server.models.source import ModelSource
from server.quantization.formats.registry import Quantization, open_format
from server.sampling.sampling_state import table_bytes
from server.worker import cache_sizing
from server.worker.cache_sizing import CacheWishes, size_groups
from tests.checkpoints import tiny_llama
from tests.quantization.others import fp8_layer, make
from tools import size
from utils.options import CONFIGS

LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
EXAMPLES = [
    path
    for path in sorted(CONFIGS.glob("examples/*/cb*.json"))
    if "laptop" not in path.parent.name and "tensor_parallel_size" not in path.read_text(encoding="utf-8")
]
"""Those for one GPU, of which `tools.size` knows."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the configuration of Llama 3 8B, without weights."""
    path = tmp_path_factory.mktemp("large")
    (path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    return path


def test_weights_are_counted_as_they_are_loaded(tmp_path: Path, large: Path) -> None:
    tiny_llama(tmp_path)
    config = ModelConfig.load(tmp_path)
    model, _ = load_model(ModelSource(tmp_path), config, torch.bfloat16, torch.device("cpu"))
    loaded = sum(2 * weight.numel() for weight in model.parameters())
    assert size.weight_bytes(tmp_path, config, torch.bfloat16) == loaded
    assert (
        size.weight_bytes(large, ModelConfig.load(large), torch.bfloat16) == 2 * 8_030_261_248
    )  # Meta's count


def test_fp8_is_counted_as_the_device_keeps_it(tmp_path: Path) -> None:
    """As stored on GPUs with FP8 units, as floats elsewhere; within 1 % of what a model takes there."""
    path, _ = make(
        tiny_llama(tmp_path / "floats", hidden=256),
        tmp_path,
        {"quant_method": "fp8", "activation_scheme": "dynamic"},
        fp8_layer(None, per_output=True, name="weight_scale"),
    )
    config = ModelConfig.load(path)
    checkpoint = open_format(path, Quantization("auto"))
    assert checkpoint is not None
    for objection, float8 in ((None, True), ("none", False)):
        kept = checkpoint.for_float8(objection)
        linears = QuantizedLinears(kept, torch.bfloat16, torch.device("cpu"))
        architecture = config.architecture
        model = architecture.decoder(
            architecture.spec, torch.bfloat16, torch.device("cpu"), architecture.names, linears
        )
        tensors = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
        counted = size.weight_bytes(path, config, torch.bfloat16, float8=float8)
        assert counted == pytest.approx(sum(tensors.values()), rel=0.01)


def test_a_cache_in_fp8_holds_twice_the_tokens(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = []
    for dtype in ("auto", "fp8_e4m3"):
        size.main([str(large), "H200", "--cache_dtype", dtype])
        (said,) = re.findall(r"blocks, ([\d,]+) tokens", capsys.readouterr().out)
        tokens.append(int(said.replace(",", "")))
    assert tokens[1] == pytest.approx(2 * tokens[0], abs=16)
    with pytest.raises(SystemExit, match=r"A100-80 has no FP8 units, which cache_dtype fp8_e4m3 needs"):
        size.main([str(large), "A100-80", "--cache_dtype", "fp8_e4m3"])


def test_the_cache_is_that_of_a_server(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig.load(large)
    specs = cache_specs(config.spec.layers, "bfloat16")
    machine = size.MACHINES["A100-40"]
    weights = size.weight_bytes(large, config, torch.bfloat16)
    found = size.size(machine, weights, specs, 128256, length=131072, beams=64, block=16)
    free = int(machine.memory - machine.taken) - weights
    monkeypatch.setattr(cache_sizing, "free_memory", lambda device: free)
    monkeypatch.setattr(cache_sizing, "all_memory", lambda device: 2**40)
    wishes = CacheWishes(None, None, 0, 16, size.FRACTION)
    (group,) = size_groups(
        specs, wishes, torch.device("cuda"), max_rows=64, max_tokens=8192, max_length=131072,
        reserved=table_bytes(64, 128256),
    )  # fmt: skip
    assert found.blocks == pytest.approx(group.num_blocks, abs=1)
    assert found.requests == found.tokens // 131072


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_the_examples_say_what_is_calculated(
    path: Path, large: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = path.read_text(encoding="utf-8")
    (command,) = re.findall(r"tools\.size MODEL (.*)", text)
    size.main([str(large), *command.split()])
    (blocks,) = re.findall(r"([\d,]+) blocks", capsys.readouterr().out)
    (said,) = re.findall(r"about ([\d,]+) blocks", text)
    assert int(said.replace(",", "")) == pytest.approx(int(blocks.replace(",", "")), rel=0.05)


def test_what_does_not_fit_is_said(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"no request of 2048 tokens fits; machines with room: L4, .*H200$"):
        size.main([str(large), "laptop"])
    with pytest.raises(SystemExit, match=r"holds no config\.json"):
        size.main([str(large / "nowhere"), "L4"])
    with pytest.raises(SystemExit):
        size.main([str(large), "V100"])
    assert "invalid choice: 'V100'" in capsys.readouterr().err
