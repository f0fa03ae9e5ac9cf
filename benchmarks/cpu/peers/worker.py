"""What every engine's script does: load, then time what it is told to, until its input ends."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import metadata

from benchmarks.cpu.workloads import Request, requests

MARK = "benchmark:"
"""Begins the lines that are ours; engines print what they like."""

Run = Callable[[list[Request]], list[int]]
"""Serves all requests at once, greedily; returns how many tokens each was given."""


def serve(run: Run, *packages: str) -> None:
    """Say what is installed, then time one workload per line ``NAME REPETITION`` of input."""
    _say({"versions": {package: metadata.version(package) for package in packages}})
    for line in sys.stdin:
        name, repetition = line.split()
        work = requests(name, int(repetition))
        begin = time.perf_counter()
        produced = run(work)
        seconds = time.perf_counter() - begin
        if produced != [new for _, new in work]:
            raise RuntimeError(f"{name}: {produced} tokens were generated, not {[new for _, new in work]}")
        _say({"seconds": seconds})


def _say(message: object) -> None:
    print(MARK + json.dumps(message), flush=True)
