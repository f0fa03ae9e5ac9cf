"""C1 over HTTP, alone and beside busy loops: ``.venv/bin/python -m benchmarks.cpu.contended``.

The continuous-batching and the static server take turns, each alone and with as many endless loops beside it
as there are processors. Threads that spin while they wait would lose far more than the half that the loops
take. Writes ``contended.json`` with the output tokens a second of each turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.checkpoints import SHAPES, make_llama
from benchmarks.comparison.servers import Server, continuous_config, started, static_config
from benchmarks.cpu.served import time_served
from benchmarks.cpu.workloads import figure, requests
from benchmarks.machine import processor, today
from benchmarks.processes import ROOT
from utils.commands import command, with_interpreter

_WORKLOAD = "C1"
_PACKAGE = 32
"""Requests of C1, which the static server takes at once."""


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """So many processes that do nothing but run."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def servers(model: Path) -> list[Server]:
    """Both kinds, on the CPU in bfloat16."""
    continuous = continuous_config(str(model), "bfloat16", _PACKAGE, "cpu", "first_come")
    static = static_config(str(model), "bfloat16", "cpu", _PACKAGE, 0.1)
    return [
        Server("continuous batching", "continuous_batching_server_app.py", continuous, "v2", True),
        Server("static batching", "static_batching_server_app.py", static, "v1", False),
    ]


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), prog=command("-m", "benchmarks.cpu.contended")
    )
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "cpu-engines")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "local" / "cpu")
    options = parser.parse_args()
    model = make_llama(options.models / f"llama-{options.shape}", SHAPES[options.shape])
    processors = len(os.sched_getaffinity(0))
    figures: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = [(each, stack.enter_context(started(each, directory))) for each in servers(model)]
        for repetition in range(-1, options.repetitions):  # the first one warms up
            for server, url in running:
                for loops in (0, processors):
                    with busy(loops):
                        work = requests(_WORKLOAD, repetition)
                        seconds = asyncio.run(time_served(url, work, streams=server.streams))
                    if repetition >= 0:
                        by_loops = figures.setdefault(server.name, {})
                        by_loops.setdefault(f"{loops} loops", []).append(figure(_WORKLOAD, seconds, 0.0))
    options.output.mkdir(parents=True, exist_ok=True)
    result = {"processor": processor(), "date": today(), "shape": options.shape, "C1": figures}
    (options.output / "contended.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, by_loops in figures.items():
        alone, beside = (statistics.median(values) for values in by_loops.values())
        print(
            f"{name}: {alone:,.0f} output tok/s alone, {beside:,.0f} beside loops, {beside / alone:.2f} of it"
        )


if __name__ == "__main__":
    main()
