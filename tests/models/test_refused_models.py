"""What cannot be served as configured is refused in one line that names the key."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM, cache_size
from server.continuous_batching.checkpoint_reader import CheckpointReader
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.supervisor import EngineRefusedError, EngineSupervisor
from server.models.config import ModelConfig


def test_a_model_of_another_type_than_configured(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"model_type is 'qwen2', but .* is of type 'llama'"):
        LLM(tiny_model, model_loading_config={"model_type": "qwen2", "device": "cpu"})
    for kind in (None, "llama"):
        loading = {"model_type": kind, "device": "cpu", "torch_dtype": "float32"}
        LLM(tiny_model, model_loading_config=loading, cache_config={"num_blocks": 10})


@pytest.mark.parametrize("key", ["num_blocks", "num_blocks_cpu"])
def test_a_cache_larger_than_the_machine(tiny_model: Path, key: str) -> None:
    sizes = {"num_blocks": 10, "num_blocks_cpu": 10} | {key: 10**10}
    with pytest.raises(ModelError, match=rf"cache_config\.{key}: 10000000000 blocks .* GiB") as caught:
        LLM(tiny_model, model_loading_config={"device": "cpu"}, cache_config=sizes)
    assert "\n" not in str(caught.value)


def test_tables_larger_than_the_memory_that_is_free(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, where they are made while serving, and the cache would be sized without them."""
    monkeypatch.setattr(cache_size, "free_memory", lambda device: 10**5)
    config = ServerConfig.model_validate({"model_loading_config": {"model_name_or_path": str(tiny_model)}})
    loaded = SimpleNamespace(
        config=ModelConfig.load(tiny_model), max_length=128, device=torch.device("cuda"), dtype=torch.float32
    )
    with pytest.raises(ModelError, match=r"batcher_config\.batch_max_beams: .* can take .* are free"):
        cache_size.size_cache(config, loaded, ())


async def test_files_that_cannot_be_read_any_more(tiny_model: Path) -> None:
    """A file that the HTTP process fails to read for the engine refuses the model, too."""
    config = ServerConfig.model_validate(
        {"model_loading_config": {"model_name_or_path": str(tiny_model), "device": "cpu"}}
    )

    def parts() -> Iterator[bytes]:
        yield from itertools.islice(CheckpointReader(config).parts(), 2)
        raise OSError("the disk is gone")

    supervisor = EngineSupervisor(*([lambda *_: None] * 4))
    try:
        with pytest.raises(EngineRefusedError, match="the disk is gone"):
            await supervisor.start(parts)
    finally:
        await supervisor.close()


async def test_tables_larger_than_the_machine(tiny_model: Path) -> None:
    """What is not weighed beforehand is told in one line all the same."""
    config = ServerConfig.model_validate(
        {
            "model_loading_config": {"model_name_or_path": str(tiny_model), "device": "cpu"},
            "batcher_config": {"batch_max_beams": 10**15, "batch_max_tokens": 10**15},
            "cache_config": {"num_blocks": 10, "num_blocks_cpu": 0},
        }
    )
    supervisor = EngineSupervisor(*([lambda *_: None] * 4))
    try:
        with pytest.raises(EngineRefusedError, match="the memory does not suffice"):
            await supervisor.start(CheckpointReader(config).parts)
    finally:
        await supervisor.close()
