"""The processes of the ranks beside rank 0."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from server.continuous_batching.config import ServerConfig
from server.continuous_batching.environment import engine_environment
from server.continuous_batching.start_pipe import send_part
from server.device.collectives import Group

PROCESS = "server.continuous_batching.ranks.process"
"""What a rank runs."""

logger = logging.getLogger(__name__)


class Others:
    """Starts them, and ends all when one is gone.

    Args:
        config: given to each.
        count: of ranks, rank 0 included.
        directory: where they find rank 0.
        lost: as of `Ranks`.

    Attributes:
        problem: which is gone, and why; None: all are there.
        group: once they have joined.
    """

    def __init__(
        self, config: ServerConfig, count: int, directory: Path, lost: Callable[[str], None] | None
    ) -> None:
        self.problem: str | None = None
        self.group: Group | None = None
        self._lost = lost
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        for rank in range(1, count):
            self._processes[rank] = _start(config, rank, count, directory, ends_leader=lost is not None)

    @property
    def pids(self) -> list[int]:
        """Process ids of all ranks, the first that of this process."""
        return [os.getpid(), *(process.pid for process in self._processes.values())]

    def gone(self) -> str | None:
        """Which process has ended, and how; None: none has."""
        for rank, process in self._processes.items():
            status = process.poll()
            if status is not None:
                how = f"by signal {-status}" if status < 0 else f"with status {status}"
                return f"rank {rank} ended {how}"
        return None

    def lose(self, problem: str) -> None:
        """Give all of them up."""
        logger.error("%s", problem)
        self.problem = problem
        if self._lost is not None:
            self._lost(problem)
        self.end()
        if self.group is not None:
            with suppress(RuntimeError):  # gloo cannot be aborted, and notices by itself
                self.group.abort()

    def end(self) -> None:
        """End the processes, whatever they are doing."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _start(
    config: ServerConfig, rank: int, count: int, directory: Path, *, ends_leader: bool
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", PROCESS, str(directory), str(rank), str(count), str(os.getpid())]
        + (["--ends-leader"] if ends_leader else []),
        stdin=subprocess.PIPE,
        env=engine_environment(os.environ),
    )
    assert process.stdin is not None
    send_part(process.stdin, config.to_json())
    return process
