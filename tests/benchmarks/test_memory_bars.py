"""Checkpoints whose matrices are holes in their files are read as any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.checkpoints import LlamaShape
from benchmarks.gpu import memory_bars
from server.models.config import ModelConfig
from server.models.load import load_model
from server.models.source import ModelSource
from server.quantization.formats.registry import Quantization
from tools.size import weight_bytes


@pytest.mark.parametrize("part", memory_bars.BARS)
def test_a_checkpoint_of_holes(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = LlamaShape(1024, 2, 8, 2, 2048, vocab=512, max_length=256)
    monkeypatch.setitem(memory_bars.SHAPES, part, small)
    size, file = memory_bars.make(tmp_path, part), tmp_path / "model.safetensors"
    assert file.stat().st_size == size > 3 * 512 * file.stat().st_blocks
    dtype, config = getattr(torch, memory_bars.TYPES[part]), ModelConfig.load(tmp_path)
    source = ModelSource(tmp_path, quantization=Quantization("auto"))
    model, _ = load_model(source, config, dtype, torch.device("cpu"))
    assert (model.norm.weight == 1).all()
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert weight_bytes(tmp_path, config, dtype) == pytest.approx(held, rel=0.01)
    assert size == pytest.approx(held, rel=0.01)


def test_the_template_is_read_as_it_is(tmp_path: Path) -> None:
    memory_bars.describe_llama(tmp_path, memory_bars.SHAPES["template"], dtype="float16")
    config = memory_bars.configuration(tmp_path, "template")
    assert (config.batcher_config.batch_max_tokens, config.cache_config.num_blocks) == (56_000, 2_500)
