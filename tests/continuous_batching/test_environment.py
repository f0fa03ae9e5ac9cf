"""What the engine process is started with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from server.continuous_batching import LLM
from server.continuous_batching.environment import engine_environment
from tests.checkpoints import tiny_llama


@pytest.fixture
def threads() -> Iterator[int]:
    """How many threads torch has; again afterwards."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_the_operator_has_the_last_word() -> None:
    found = engine_environment({"GOMP_SPINCOUNT": "7", "PATH": "/bin"})
    assert found["GOMP_SPINCOUNT"] == "7"
    assert found["PATH"] == "/bin"
    assert int(found["MALLOC_TOP_PAD_"]) > 0


def test_the_configuration_sets_the_threads(tmp_path: Path, threads: int) -> None:
    tiny_llama(tmp_path)
    loading = {"torch_dtype": "float32", "device": "cpu", "num_threads": threads + 1}
    llm = LLM(tmp_path, model_loading_config=loading, cache_config={"num_blocks": 64})
    assert torch.get_num_threads() == llm.capabilities["num_threads"] == threads + 1
    assert len(llm.generate([[5, 6, 7]])[0].answers[0].token_ids) > 0
