"""Everything in one run: ``python -m benchmarks.gpu [--shapes 1b,8b] [--engines own,vllm] [--vllm SITE]``.

First the tests of ``tests/gpu``: tokens of transformers in float32, close log probabilities in bfloat16.
Then every engine and cache size, a process of its own, on the same GPU one after the other; the result is
one JSON file, written anew after each of them, and one table.  vLLM takes part where it is installed, or
lies in the directory SITE.  What does not fit into ``--minutes`` any more is left out and said so.
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
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu.versions import versions
from benchmarks.gpu.workloads import peak_blocks, workload

UNITS = {
    "output_tokens_per_second": ("out tok/s", 0),
    "ms_per_token": ("ms/token", 3),
    "prompt_tokens_per_second": ("prompt tok/s", 0),
    "requests_per_second": ("req/s", 2),
}
PLAIN = ["W1", "W2", "W3", "W4"]
SAMPLED = ["TOPP", "OPTIONS"]
EXTRA = [*SAMPLED, "SWAP", "BEAM", "FULL", "HTTP", "TESTS"]
ENGINES = {"own": "own", "over_http": "own", "peer_vllm": "vllm", "peer_transformers": "transformers"}
"""Which engine each module of this package measures."""
TESTS_SECONDS = 200
REST_SECONDS = 2.0
"""Between two engines: the processes of the first let go of the GPU's memory some time after they end."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One process of one engine.

    Attributes:
        module: in this package.
        workloads: what it runs.
        seconds: about how long that takes with three repeats.
        label: tells it from other stages of the engine.
        flags: of its command line.
    """

    module: str
    workloads: list[str]
    seconds: int
    label: str = ""
    flags: dict[str, int] = field(default_factory=dict)


def stages(shape: str, engines: Collection[str]) -> list[Stage]:
    """What there is to measure of `engines` on a shape, the bars' own figures and their peers' first."""
    large = shape == "8b"
    own = [*PLAIN, *SAMPLED, "SWAP", *(["BEAM"] if large else [])]
    found = [
        Stage("own", own, 280 if large else 90, flags={"host_blocks": 1000}),
        Stage("peer_vllm", [*PLAIN, *SAMPLED], 300 if large else 190),
    ]
    if large:
        blocks = peak_blocks(workload("FULL"), 16) // 4
        found.append(Stage("own", ["FULL"], 115, "-full", {"blocks": blocks, "host_blocks": 4000}))
        found.append(Stage("peer_vllm", ["FULL"], 190, "-full", {"blocks": blocks}))
    found.append(Stage("peer_transformers", PLAIN, 230 if large else 140))
    if not large:
        found.append(Stage("over_http", ["HTTP"], 75))
    return [stage for stage in found if ENGINES[stage.module] in engines]


def environment(site: Path | None) -> dict[str, str]:
    """Of a child process; vLLM's telemetry and optional sampler are off."""
    path = os.pathsep.join([*([str(site)] if site else []), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **offline}


def measure(stage: Stage, shape: str, arguments: argparse.Namespace, limit: float) -> dict[str, Any] | None:
    """Run a stage for at most `limit` seconds; returns what it wrote, also where it failed half-way."""
    names = [name for name in stage.workloads if name in arguments.workloads]
    out = arguments.out / f"{stage.module}-{shape}{stage.label}.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.gpu.{stage.module}", shape, ",".join(names), str(out)]
    for flag, value in {"repeats": arguments.repeats, **stage.flags}.items():
        command += [f"--{flag.replace('_', '-')}", str(value)]
    begin = time.monotonic()
    status = run_child(command, out.with_suffix(".log"), environment(arguments.vllm), limit)
    print(
        f"{out.stem}: {time.monotonic() - begin:.0f} s, status {status}, see {out.with_suffix('.log')}",
        flush=True,
    )
    time.sleep(REST_SECONDS)
    return json.loads(out.read_text()) if out.exists() else None


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


def measure_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All stages of all shapes for which there is time; the results so far are always on disk."""
    engines = set(arguments.engines)
    if arguments.vllm is None and importlib.util.find_spec("vllm") is None:
        engines.discard("vllm")
    end = time.monotonic() + 60 * arguments.minutes
    results: list[dict[str, Any]] = []
    about: dict[str, Any] = {"versions": versions("transformers")}
    if "TESTS" in arguments.workloads:
        about["tests"] = run_tests(arguments)
    for shape in arguments.shapes:
        for stage in stages(shape, engines):
            if not set(stage.workloads) & set(arguments.workloads):
                continue
            left = end - time.monotonic()
            if left < stage.seconds * arguments.repeats / 3:
                print(f"{stage.module} {shape}{stage.label} left out: {left:.0f} s are left", flush=True)
                continue
            result = measure(stage, shape, arguments, left)
            if result is not None:
                results.append(result)
            report = {**about, "results": results}
            (arguments.out / "results.json").write_text(json.dumps(report, indent=1))
    return results


def table(results: list[dict[str, Any]]) -> str:
    """A line for each engine, model and workload."""
    lines = ["| model | workload | engine | median | range (s) |", "|---|---|---|---|---|"]

    def add(result: dict[str, Any], name: str, figure: str, remark: str = "") -> None:
        lines.append(f"| {result['shape']} | {name} | {result['engine']} | {figure} | {remark} |")

    for result in results:
        if "start_seconds" in result:
            add(result, "START", f"{result['start_seconds']:.1f} s")
        for name, figure in result["workloads"].items():
            (key,) = set(figure) & set(UNITS)
            unit, digits = UNITS[key]
            remark = f"{min(figure['seconds']):.3f} to {max(figure['seconds']):.3f}"
            if "share_of_offline" in figure:
                remark += f", {figure['share_of_offline']:.1%} of offline"
            add(result, name, f"{figure[key]:,.{digits}f} {unit}", remark)
        for way, figure in result.get("swap", {}).items():
            if isinstance(figure, dict):
                gigabytes, slowdown = figure["gigabytes_per_second"], figure["slowdown"]
                add(result, f"SWAP {way}", f"{gigabytes:.1f} GB/s", f"steps {slowdown:+.1%}")
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", type=lambda names: names.split(","), default=["1b", "8b"])
    parser.add_argument("--engines", type=lambda names: names.split(","), default=[*set(ENGINES.values())])
    parser.add_argument("--workloads", type=lambda names: names.split(","), default=[*PLAIN, *EXTRA])
    parser.add_argument("--vllm", type=Path, help="directory that holds vLLM and what it needs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/local/gpu"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60.0, help="for all of it")
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
