"""The stages of a comparison as processes: engines side by side on one GPU, measured in turn."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.child import Child, environment
from benchmarks.gpu.report import Result
from benchmarks.gpu.stages import Stage
from benchmarks.gpu.timing import DONE, READY

REST_SECONDS = 2.0
"""Between two engines: the processes of the first let go of the GPU's memory some time after they end."""


@dataclass(slots=True)
class Task:
    """A stage of a shape.

    Attributes:
        results: what its processes wrote, each in one or several turns.
    """

    shape: str
    stage: Stage
    results: list[Result] = field(default_factory=list)

    def file(self, turn: int, arguments: argparse.Namespace) -> Path:
        """Of its figures; a stage that is alone has one for each turn."""
        number = f"-{turn}" if self.stage.alone else ""
        out: Path = arguments.out / f"{self.stage.module}-{self.shape}{self.stage.label}{number}.json"
        return out

    def start(self, turn: int, arguments: argparse.Namespace) -> Child:
        """Its process."""
        stage, out = self.stage, self.file(turn, arguments)
        asked = stage.asked or ",".join(_names(stage, arguments))
        out.unlink(missing_ok=True)
        command = [sys.executable, "-m", f"benchmarks.gpu.{stage.module}", self.shape, asked, str(out)]
        for flag, value in {"repeats": arguments.repeats, **stage.flags}.items():
            command += [f"--{flag.replace('_', '-')}", str(value)]
        if not stage.alone:
            command.append("--gate")
        return Child(command, out.with_suffix(".log"), environment(arguments.vllm))

    def seconds(self, arguments: argparse.Namespace) -> float:
        """About, of a turn."""
        return float(arguments.repeats * self.stage.seconds(_names(self.stage, arguments)))


def measure(tasks: Sequence[Task], arguments: argparse.Namespace, end: float) -> Iterator[None]:
    """Load engines side by side, and measure them in turn until `end`; yields when something was measured."""
    children = [(task, task.start(1, arguments)) for task in tasks]
    try:
        ready = [(task, child) for task, child in children if child.says(READY, end - time.monotonic())]
        for turn in range(1, arguments.rounds + 1):
            for task, child in [*ready]:
                left, name = end - time.monotonic(), child.log.stem
                if left < task.seconds(arguments):
                    print(f"{name}, turn {turn} left out: {left:.0f} s are left", flush=True)
                    continue
                child.go()
                done, took = child.says(DONE, left, turn), left - (end - time.monotonic())
                print(f"{name}, turn {turn}: {'' if done else 'failed after '}{took:.0f} s", flush=True)
                if not done:
                    child.end(0.0)  # nothing of it runs beside the others
                    ready.remove((task, child))
                if found := read(task.file(turn, arguments)):
                    task.results[:] = [found]
                    yield
    finally:
        for _, child in children:
            status = child.end(REST_SECONDS)
            print(f"{child.log.stem}: status {status}, see {child.log}", flush=True)
        time.sleep(REST_SECONDS)


def measure_alone(group: Sequence[Task], arguments: argparse.Namespace, end: float) -> Iterator[None]:
    """The same of one engine that nothing is loaded beside, a process for each turn."""
    (task,) = group
    for turn in range(1, arguments.rounds + 1):
        found = finished(task, turn, arguments) if arguments.resume else None
        begin = time.monotonic()
        if found is None and end - begin < task.stage.start + task.seconds(arguments):
            print(f"{task.file(turn, arguments).stem} left out: {end - begin:.0f} s are left", flush=True)
            continue
        if found is None:
            child = task.start(turn, arguments)
            child.go()
            status = child.end(end - begin)
            print(f"{child.log.stem}: {time.monotonic() - begin:.0f} s, status {status}, see {child.log}")
            time.sleep(REST_SECONDS)
            found = read(task.file(turn, arguments))
        if found is not None:
            task.results.append(found)
            yield


def finished(task: Task, turn: int, arguments: argparse.Namespace) -> Result | None:
    """What an earlier call wrote of a stage, if it came to its end."""
    found = read(task.file(turn, arguments))
    if found is None:
        return None
    swap = ["SWAP"] if "swap" in found else []
    measured = {*found.get("workloads", ()), *found.get("served", ()), *found.get("finished", ()), *swap}
    return found if measured.issuperset(_names(task.stage, arguments)) else None


def side_by_side(tasks: Sequence[Task], gigabytes: float) -> list[list[Task]]:
    """Tasks that are loaded together, as many in a row as there is memory for."""
    groups: list[list[Task]] = []
    room = 0.0
    for task in tasks:
        need = math.inf if task.stage.alone else task.stage.gigabytes(task.shape)
        if need > room:
            groups.append([])
            room = gigabytes
        groups[-1].append(task)
        room -= need
    return groups


def _names(stage: Stage, arguments: argparse.Namespace) -> list[str]:
    """The workloads of a stage that are asked for."""
    return [name for name in stage.workloads if name in arguments.workloads]


def read(out: Path) -> Result | None:
    """What a stage wrote; None where it ended before it wrote, or while it did."""
    try:
        found: Result = json.loads(out.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found


def take_finished(task: Task, arguments: argparse.Namespace) -> bool:
    """Whether an earlier call came to the end of a stage that others are loaded beside."""
    found = None if task.stage.alone else finished(task, 1, arguments)
    if found is not None:
        task.results.append(found)
    return found is not None


def measure_fitting(group: Sequence[Task], arguments: argparse.Namespace, end: float) -> Iterator[None]:
    """`measure` those of a group for whose start and first turn there is time."""
    fitting: list[Task] = []
    for task in group:
        start = max(each.stage.start for each in [*fitting, task])
        needed = start + sum(each.seconds(arguments) for each in [*fitting, task])
        if (left := end - time.monotonic()) < needed:
            print(f"{task.file(1, arguments).stem} left out: {left:.0f} s are left", flush=True)
        else:
            fitting.append(task)
    return measure(fitting, arguments, end) if fitting else iter(())
