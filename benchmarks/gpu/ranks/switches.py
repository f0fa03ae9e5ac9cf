"""What ranks under measurement do otherwise than those of a server; each reads it from its environment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.gpu.own import random_weights
from server.device.peer_memory import PeerMemoryError

_VARIABLE = "BENCHMARKED_RANK"
PROCESS = "benchmarks.gpu.ranks.rank"


@dataclass(frozen=True, slots=True)
class Switches:
    """How an engine is built.

    Attributes:
        made_up: weights are made up in place, not read from files.
        nccl_alone: all sums go over NCCL.
        copies: a file for the times of swaps, to which each rank adds its number; none: they are not kept.
    """

    made_up: bool = True
    nccl_alone: bool = False
    copies: str = ""


@contextmanager
def switched(switches: Switches) -> Iterator[None]:
    """Engines that are made meanwhile, and the ranks that they start, are built so."""
    from server.continuous_batching.ranks import others

    os.environ[_VARIABLE] = json.dumps(asdict(switches))
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(others, "PROCESS", PROCESS))
        _apply(switches, patches)
        yield


def follow_environment() -> None:
    """Be built so, as a rank that was started with `switched`."""
    switches = Switches(**json.loads(os.environ[_VARIABLE]))
    _apply(switches, patches := ExitStack())
    if switches.copies:
        patches.enter_context(_kept_copies(Path(switches.copies)))


def _apply(switches: Switches, patches: ExitStack) -> None:
    if switches.made_up:
        patches.enter_context(mock.patch("server.models.load.load_weights", random_weights))
    if switches.nccl_alone:
        switched_off = PeerMemoryError("switched off, to compare")
        patches.enter_context(mock.patch("server.device.collectives._over_peers", side_effect=switched_off))


def _kept_copies(path: Path) -> Any:
    from server.worker.worker import Worker

    take = Worker.take_timings

    def keep(worker: Worker) -> Any:
        timings = take(worker)
        if timings.copies:
            with path.open("a") as file:
                file.writelines(json.dumps(copy) + "\n" for copy in timings.copies)
        return timings

    return mock.patch.object(Worker, "take_timings", keep)
