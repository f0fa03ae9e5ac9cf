"""What the programs share that time one engine on the workloads: arguments, runs, and the file of figures."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu.workloads import Workload, figures, workload
from utils.commands import with_interpreter

READY, DONE = "ready to measure", "turn done"
"""What a program says that was started with ``--gate``, once its engine is loaded, and after each turn."""

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
    return made


def add_gate(parser: argparse.ArgumentParser) -> None:
    """The option of programs that take turns on one GPU."""
    help = "measure once for each line on standard input; engines can be loaded side by side then"
    parser.add_argument("--gate", action="store_true", help=help)


def turns(gate: bool) -> Iterator[int]:
    """Numbers of the turns in which everything is measured: one, or, behind a gate, one for each line."""
    if not gate:
        yield 0
        return
    print(READY, flush=True)
    for turn, _ in enumerate(sys.stdin):
        yield turn
        print(DONE, flush=True)


def repeat(run: Run, name: str, repeats: int, turn: int = 0) -> list[float]:
    """Seconds of each run of the workload `name`, after a short one that warms up; of another `turn`, with
    other tokens."""
    timed, first = workload(name), turn * repeats + 1
    run(timed.shortened(24))
    return [run(timed.moved(number)) for number in range(first, first + repeats)]


def note(result: Result, name: str, seconds: list[float], out: Path, **more: Any) -> None:
    """Add the runs of a workload to those of earlier turns, show the figures, and write all so far."""
    seconds = [*result["workloads"].get(name, {}).get("seconds", ()), *seconds]
    made = figures(name, workload(name), statistics.median(seconds))
    result["workloads"][name] = {"seconds": seconds, **made, **more}
    write(result, name, result["workloads"][name], out)


def write(result: Result, name: str, figure: Any, out: Path) -> None:
    """Show `figure`, and write all there is so far."""
    print(result["shape"], name, figure, flush=True)
    out.write_text(json.dumps(result, indent=1))


def time_workloads(
    run: Run, names: Iterable[str], repeats: int, result: Result, out: Path, turn: int = 0
) -> None:
    """Time the workloads `names` one after the other."""
    for name in names:
        note(result, name, repeat(run, name, repeats, turn), out)
