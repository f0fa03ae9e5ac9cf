"""How many ranks there are, and on which devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from server.checkpoints.errors import ModelError
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.loaded_model import choose_device
from server.continuous_batching.ranks.start import count_ranks
from server.layers.shard import Shard


def config(path: Path, wanted: Any, device: str = "auto") -> ServerConfig:
    loading = {"model_name_or_path": str(path), "device": device}
    return ServerConfig.model_validate(
        {"model_loading_config": loading, "parallel_config": {"tensor_parallel_size": wanted}}
    )


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """As torch sees them; returns what makes one the current."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen := mock.Mock())
    return chosen


def test_auto_takes_all_visible_gpus(tiny_model: Path, four_gpus: mock.Mock) -> None:
    assert count_ranks(config(tiny_model, "auto")) == 4
    assert count_ranks(config(tiny_model, "auto", "cpu")) == 1
    assert count_ranks(config(tiny_model, 2)) == 2


def test_each_rank_has_a_gpu_of_its_own(four_gpus: mock.Mock) -> None:
    assert choose_device("auto", Shard(2, 4)) == torch.device("cuda", 2)
    four_gpus.assert_called_once_with(torch.device("cuda", 2))
    assert choose_device("cuda") == torch.device("cuda")
    with pytest.raises(ModelError, match=r"tensor_parallel_size is 5, but 4 GPUs are visible"):
        choose_device("cuda", Shard(0, 5))


@pytest.mark.parametrize("wanted", [0, -1, "all", 1.5])
def test_other_counts_are_refused(tiny_model: Path, wanted: Any) -> None:
    with pytest.raises(ValueError, match=r"parallel_config\.tensor_parallel_size"):
        config(tiny_model, wanted)
