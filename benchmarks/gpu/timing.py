"""What the programs share that time one engine on the workloads: arguments, runs, and the file of figures."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu.workloads import Workload, figures, workload
from utils.commands import with_interpreter

READY = "ready to measure"
"""What a program says that was started with ``--gate``, once its engine is loaded."""

Run = Callable[[Workload], float]
"""Runs a workload; seconds that it took."""
Result = dict[str, Any]


def parser(description: str | None, models: str = "/tmp/models") -> argparse.ArgumentParser:
    """SHAPE WORKLOADS OUT, and the options that every engine has."""
    made = argparse.ArgumentParser(description=with_interpreter(description))
    made.add_argument("shape", choices=SHAPES)
    made.add_argument("workloads", type=lambda names: names.split(","))
    made.add_argument("out", type=Path)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--models", type=Path, default=Path(models))
    add_gate(made)
    return made


def add_gate(parser: argparse.ArgumentParser) -> None:
    """The option of programs that take turns on one GPU."""
    help = "measure only after a line on standard input; engines can be loaded side by side then"
    parser.add_argument("--gate", action="store_true", help=help)


def wait_for_turn(gate: bool) -> None:
    """Behind a gate, say that the engine is loaded, and wait for a line."""
    if gate:
        print(READY, flush=True)
        sys.stdin.readline()


def repeat(run: Run, name: str, repeats: int) -> list[float]:
    """Seconds of each run of the workload `name`, after a short one that warms up."""
    timed = workload(name)
    run(timed.shortened(24))
    return [run(timed.moved(number)) for number in range(1, repeats + 1)]


def note(result: Result, name: str, seconds: list[float], out: Path, **more: Any) -> None:
    """Add what the runs of a workload come to, show it, and write all there is so far."""
    made = figures(name, workload(name), statistics.median(seconds))
    result["workloads"][name] = {"seconds": seconds, **made, **more}
    write(result, name, result["workloads"][name], out)


def write(result: Result, name: str, figure: Any, out: Path) -> None:
    """Show `figure`, and write all there is so far."""
    print(result["shape"], name, figure, flush=True)
    out.write_text(json.dumps(result, indent=1))


def time_workloads(run: Run, names: Iterable[str], repeats: int, result: Result, out: Path) -> None:
    """Time the workloads `names` one after the other."""
    for name in names:
        note(result, name, repeat(run, name, repeats), out)
