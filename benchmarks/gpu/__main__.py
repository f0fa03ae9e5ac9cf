"""Everything in one run:
``.venv/bin/python -m benchmarks.gpu [--shapes 1b,8b] [--engines own,vllm] [--vllm SITE]``.

First the tests of ``tests/gpu``: tokens of transformers in float32, close log probabilities in bfloat16.
Then every engine, a process of its own. As many as the GPU's memory holds are loaded side by side and
measured in turn, round after round; servers, and what takes all memory, are alone. Figures are medians over
all rounds. The result is one JSON file, written anew after each turn, and one table. vLLM takes part where
it is installed, or lies in the directory SITE. What does not fit into ``--minutes`` any more is left out and
said so; ``--resume`` runs what an earlier call with the same --out left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu.child import Child, environment
from benchmarks.gpu.report import Result, pool, table
from benchmarks.gpu.room import gpu_gigabytes
from benchmarks.gpu.stages import ENGINES, EXTRA, PLAIN, stages
from benchmarks.gpu.tasks import Task, measure_alone, measure_fitting, read, side_by_side, take_finished
from benchmarks.gpu.versions import versions
from utils.commands import with_interpreter

TESTS_SECONDS = 200


def run_tests(arguments: argparse.Namespace) -> str:
    """What pytest says in the end of the tests that need a GPU."""
    log = arguments.out / "tests.log"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", "4"]
    # transformers answers on the CPU beside: all of its threads would wait for each other
    variables = environment(arguments.vllm) | {"OMP_NUM_THREADS": "4"}
    status = Child(command, log, variables).end(TESTS_SECONDS)
    lines = log.read_text().split("\n")
    summary = next((line for line in reversed(lines) if " passed" in line or " failed" in line), "no summary")
    print(f"tests: status {status}, {summary}, see {log}", flush=True)
    return f"status {status}: {summary}"


def measure_all(arguments: argparse.Namespace) -> list[Result]:
    """All stages of all shapes, in rounds, for which there is time; the results so far are always on disk."""
    engines = set(arguments.engines)
    if arguments.vllm is None and importlib.util.find_spec("vllm") is None:
        engines.discard("vllm")
    end = time.monotonic() + 60 * arguments.minutes
    about: dict[str, Any] = {"versions": versions("transformers")}
    before = read(arguments.out / "results.json") if arguments.resume else None
    if before is not None and "tests" in before:
        about["tests"] = before["tests"]
    elif "TESTS" in arguments.workloads:
        about["tests"] = run_tests(arguments)
    tasks = [
        Task(shape, stage)
        for shape in arguments.shapes
        for stage in stages(shape, engines)
        if set(stage.workloads) & set(arguments.workloads)
    ]
    waiting = [task for task in tasks if not (arguments.resume and take_finished(task, arguments))]
    for group in side_by_side(waiting, gpu_gigabytes()):
        way = measure_alone if group[0].stage.alone else measure_fitting
        for _ in way(group, arguments, end):
            report = {**about, "results": [pool(task.results) for task in tasks if task.results]}
            (arguments.out / "results.json").write_text(json.dumps(report, indent=1))
    return [pool(task.results) for task in tasks if task.results]


def main() -> None:
    """Run what was asked for; print the table."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("--shapes", type=lambda names: names.split(","), default=["1b", "8b"])
    parser.add_argument("--engines", type=lambda names: names.split(","), default=[*set(ENGINES.values())])
    parser.add_argument("--workloads", type=lambda names: names.split(","), default=[*PLAIN, *EXTRA])
    parser.add_argument("--vllm", type=Path, help="directory that holds vLLM and what it needs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/local/gpu"))
    parser.add_argument("--rounds", type=int, default=3, help="turns of every engine")
    parser.add_argument("--repeats", type=int, default=1, help="runs of a workload in each turn")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier call wrote to --out")
    parser.add_argument("--minutes", type=float, default=90.0, help="for all of it")
    arguments = parser.parse_args()
    known = {"shapes": SHAPES, "engines": ENGINES.values(), "workloads": [*PLAIN, *EXTRA]}
    for name, names in known.items():
        if unknown := set(getattr(arguments, name)) - set(names):
            parser.error(f"unknown {name}: {', '.join(sorted(unknown))}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = measure_all(arguments)
    print(json.dumps(versions("transformers")))
    print(table(results))


if __name__ == "__main__":
    main()
