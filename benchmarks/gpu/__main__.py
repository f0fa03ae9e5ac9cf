"""Everything in one run:
``.venv/bin/python -m benchmarks.gpu [--shapes 1b,8b] [--engines own,vllm] [--vllm SITE]``.

First the tests of ``tests/gpu``: tokens of transformers in float32, close log probabilities in bfloat16.
Then every engine and cache size, a process of its own, on the same GPU in turn, round after round; figures
are medians over all rounds.  The result is one JSON file, written anew after each process, and one table.
vLLM takes part where it is installed, or lies in the directory SITE.  What does not fit into ``--minutes``
any more is left out and said so; ``--resume`` runs what an earlier call with the same --out left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu.report import Result, pool, table
from benchmarks.gpu.stages import ENGINES, EXTRA, PLAIN, Stage, stages
from benchmarks.gpu.versions import versions
from utils.commands import with_interpreter

TESTS_SECONDS = 200
REST_SECONDS = 2.0
"""Between two engines: the processes of the first let go of the GPU's memory some time after they end."""


def environment(site: Path | None) -> dict[str, str]:
    """Of a child process; vLLM's telemetry and optional sampler are off."""
    path = os.pathsep.join([*([str(site)] if site else []), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **offline}


def measure(
    stage: Stage, shape: str, turn: int, arguments: argparse.Namespace, limit: float
) -> Result | None:
    """Run a stage for at most `limit` seconds; returns what it wrote, also where it failed half-way."""
    asked, out = stage.asked or ",".join(_names(stage, arguments)), _file(stage, shape, turn, arguments)
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.gpu.{stage.module}", shape, asked, str(out)]
    for flag, value in {"repeats": arguments.repeats, **stage.flags}.items():
        command += [f"--{flag.replace('_', '-')}", str(value)]
    begin = time.monotonic()
    status = run_child(command, out.with_suffix(".log"), environment(arguments.vllm), limit)
    print(
        f"{out.stem}: {time.monotonic() - begin:.0f} s, status {status}, see {out.with_suffix('.log')}",
        flush=True,
    )
    time.sleep(REST_SECONDS)
    return _result(out)


def finished(stage: Stage, shape: str, turn: int, arguments: argparse.Namespace) -> Result | None:
    """What an earlier call wrote of a stage, if it came to its end."""
    found = _result(_file(stage, shape, turn, arguments))
    if found is None:
        return None
    swap = ["SWAP"] if "swap" in found else []
    measured = {*found.get("workloads", ()), *found.get("served", ()), *found.get("finished", ()), *swap}
    return found if measured.issuperset(_names(stage, arguments)) else None


def _names(stage: Stage, arguments: argparse.Namespace) -> list[str]:
    """The workloads of a stage that are asked for."""
    return [name for name in stage.workloads if name in arguments.workloads]


def _file(stage: Stage, shape: str, turn: int, arguments: argparse.Namespace) -> Path:
    out: Path = arguments.out / f"{stage.module}-{shape}{stage.label}-{turn}.json"
    return out


def _result(out: Path) -> Result | None:
    """What a stage wrote; None where it ended before it wrote, or while it did."""
    try:
        found: Result = json.loads(out.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found


def run_child(command: list[str], log: Path, environment: dict[str, str], limit: float) -> int | str:
    """Exit status of a process that writes to `log`; nothing of it is left after `limit` seconds."""
    with log.open("wb") as file:
        child = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return child.wait(limit)
        except subprocess.TimeoutExpired:
            return "out of time"
        finally:
            with contextlib.suppress(ProcessLookupError):  # its own children too: they hold GPU memory
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def run_tests(arguments: argparse.Namespace) -> str:
    """What pytest says in the end of the tests that need a GPU."""
    log = arguments.out / "tests.log"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    # transformers answers on the CPU beside: all of its threads would wait for each other
    variables = environment(arguments.vllm) | {"OMP_NUM_THREADS": "4"}
    status = run_child(command, log, variables, TESTS_SECONDS)
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
    before = _result(arguments.out / "results.json") if arguments.resume else None
    if before is not None and "tests" in before:
        about["tests"] = before["tests"]
    elif "TESTS" in arguments.workloads:
        about["tests"] = run_tests(arguments)
    chosen = [
        (shape, stage)
        for shape in arguments.shapes
        for stage in stages(shape, engines)
        if set(stage.workloads) & set(arguments.workloads)
    ]
    rounds: list[list[Result]] = [[] for _ in chosen]
    for turn in range(1, arguments.rounds + 1):
        for (shape, stage), results in zip(chosen, rounds, strict=True):
            result = finished(stage, shape, turn, arguments) if arguments.resume else None
            left = end - time.monotonic()
            if result is None and left < stage.start + arguments.repeats * stage.repeat:
                print(f"{stage.module} {shape}{stage.label} left out: {left:.0f} s are left", flush=True)
                continue
            result = result or measure(stage, shape, turn, arguments, left)
            if result is not None:
                results.append(result)
            report = {**about, "results": [pool(found) for found in rounds if found]}
            (arguments.out / "results.json").write_text(json.dumps(report, indent=1))
    return [pool(found) for found in rounds if found]


def main() -> None:
    """Run what was asked for; print the table."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("--shapes", type=lambda names: names.split(","), default=["1b", "8b"])
    parser.add_argument("--engines", type=lambda names: names.split(","), default=[*set(ENGINES.values())])
    parser.add_argument("--workloads", type=lambda names: names.split(","), default=[*PLAIN, *EXTRA])
    parser.add_argument("--vllm", type=Path, help="directory that holds vLLM and what it needs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/local/gpu"))
    parser.add_argument("--rounds", type=int, default=3, help="times that every engine is started")
    parser.add_argument("--repeats", type=int, default=1, help="runs of a workload at each start")
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
