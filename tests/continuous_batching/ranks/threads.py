"""Ranks that are threads of the test: they say and compute what processes do, and start at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import zmq

from server.continuous_batching import LLM
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.ranks import leader, process
from server.device.collectives import Group
from server.layers.shard import Shard


class ThreadOthers:
    """In the place of `Others`."""

    def __init__(
        self, config: ServerConfig, count: int, directory: Path, lost: Callable[[str], None] | None
    ) -> None:
        self.problem: str | None = None
        self.group: Group | None = None
        self.pids = list(range(count))
        self.statuses: dict[int, int] = {}
        self._threads = [
            threading.Thread(target=self._follow, args=(config, Shard(rank, count), directory), daemon=True)
            for rank in range(1, count)
        ]
        for thread in self._threads:
            thread.start()

    def _follow(self, config: ServerConfig, shard: Shard, directory: Path) -> None:
        status = process.follow(config, shard, directory, zmq.Context(), lambda problem: None)
        self.statuses[shard.rank] = status

    def gone(self) -> str | None:
        for rank, status in self.statuses.items():
            return f"rank {rank} ended with status {status}"
        return None

    def lose(self, problem: str) -> None:
        self.problem = problem

    def end(self) -> None:
        for thread in self._threads:
            thread.join(1)


@contextmanager
def as_threads() -> Iterator[None]:
    """Engines made meanwhile have such ranks."""
    with (
        mock.patch.object(leader, "Others", ThreadOthers),
        mock.patch.object(process, "tame_collector", lambda: None),
    ):
        yield


def split_llm(path: Path, ranks: int, **sections: Any) -> LLM:
    """A float32 `LLM` on the CPU, split over `ranks`."""
    loading = {"torch_dtype": "float32", "device": "cpu", **sections.pop("model_loading_config", {})}
    parallel = {"tensor_parallel_size": ranks}
    with as_threads():
        return LLM(path, model_loading_config=loading, parallel_config=parallel, **sections)
