"""Each rank holds its part of the weights, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.continuous_batching import LLM
from tests.checkpoints import tiny_llama
from tests.continuous_batching.ranks.threads import split_llm

CACHE = {"num_blocks": 8, "num_blocks_cpu": 0}


def stored_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


@pytest.mark.parametrize("ranks", [2, 4])
def test_weights_are_divided(tmp_path: Path, ranks: int) -> None:
    path = tiny_llama(tmp_path, hidden=128, kv_heads=4)
    found = split_llm(path, ranks, cache_config=CACHE).capabilities["ranks"]["weights_bytes"]
    assert len(found) == ranks and max(found) <= 1.1 * stored_bytes(path) / ranks


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that no file backs."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("RssAnon:")]
    return int(line.split()[1]) << 10


def memory_of_ranks(path: Path) -> int:
    """Of the second of two ranks, in a process of its own."""
    llm = LLM(
        path,
        model_loading_config={
            "torch_dtype": "float32",
            "device": "cpu",
            "num_threads": 1,
            "model_max_length": 64,
        },
        cache_config=CACHE,
        parallel_config={"tensor_parallel_size": 2},
    )
    return anonymous_bytes(llm.capabilities["ranks"]["pids"][1])


@pytest.mark.slow
def test_the_memory_of_a_process(tmp_path: Path) -> None:
    """Beside that of one with hardly any weights."""
    small = tiny_llama(tmp_path / "small")
    large = tiny_llama(tmp_path / "large", hidden=1024, layers=4, vocab=512, kv_heads=4)
    weights = stored_bytes(large)
    assert weights > 100 << 20
    idle = memory_of_ranks(small)
    assert memory_of_ranks(large) - idle <= 1.1 * weights / 2
