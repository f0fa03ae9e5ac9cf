"""Everything in one run: ``python -m benchmarks.gpu [--shapes 1b,8b] [--vllm SITE] [--out DIR]``.

Every engine and cache size is a process of its own, on the same GPU one after the other; the result is
one JSON file and one table.  vLLM takes part where it is installed, or lies in the
directory SITE.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu.workloads import peak_blocks, workload

UNITS = {
    "output_tokens_per_second": ("out tok/s", 0),
    "ms_per_token": ("ms/token", 3),
    "prompt_tokens_per_second": ("prompt tok/s", 0),
    "requests_per_second": ("req/s", 2),
}
PLAIN = ["W1", "W2", "W3", "W4"]


def environment(site: Path | None) -> dict[str, str]:
    """Of a child process; vLLM's telemetry and optional sampler are off."""
    path = os.pathsep.join([*([str(site)] if site else []), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **offline}


def measure(
    engine: str, shape: str, names: list[str], arguments: argparse.Namespace, label: str = "", **flags: int
) -> dict[str, Any] | None:
    """Run one engine; returns what it wrote, or None if it failed (its log says why)."""
    out = arguments.out / f"{engine}-{shape}{label}.json"
    command = [sys.executable, "-m", f"benchmarks.gpu.{engine}", shape, ",".join(names), str(out)]
    for flag, value in {"repeats": arguments.repeats, **flags}.items():
        command += [f"--{flag.replace('_', '-')}", str(value)]
    with out.with_suffix(".log").open("wb") as log:
        status = subprocess.run(
            command, env=environment(arguments.vllm), stdout=log, stderr=subprocess.STDOUT
        )
    if status.returncode != 0:
        print(f"{engine} {shape}{label} failed, see {out.with_suffix('.log')}", flush=True)
    return json.loads(out.read_text()) if out.exists() else None


def measure_shape(shape: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All engines and workloads of one model."""
    found = []
    has_vllm = arguments.vllm is not None or importlib.util.find_spec("vllm") is not None
    plain = [name for name in PLAIN if name in arguments.workloads]
    if plain:
        found.append(measure("own", shape, plain, arguments))
    if "BEAM" in arguments.workloads:
        found.append(measure("own", shape, ["BEAM"], arguments, "-beam"))
    if "FULL" in arguments.workloads:
        blocks = peak_blocks(workload("FULL"), 16) // 4
        found.append(measure("own", shape, ["FULL"], arguments, "-full", blocks=blocks, host_blocks=4000))
    if plain and has_vllm:  # last: its processes let go of the memory some time after they end
        found.append(measure("peer_vllm", shape, plain, arguments))
    return [result for result in found if result is not None]


def versions() -> dict[str, str]:
    """What it ran on."""
    import torch

    names = ("torch", "triton", "transformers")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda or "",
        **{name: importlib.metadata.version(name) for name in names},
    }


def table(results: list[dict[str, Any]]) -> str:
    """A line for each engine, model and workload."""
    lines = ["| model | workload | engine | median | range (s) |", "|---|---|---|---|---|"]
    for result in results:
        for name, figure in result["workloads"].items():
            (key,) = set(figure) & set(UNITS)
            unit, digits = UNITS[key]
            seconds = figure["seconds"]
            lines.append(
                f"| {result['shape']} | {name} | {result['engine']} | {figure[key]:,.{digits}f} {unit} "
                f"| {min(seconds):.3f} to {max(seconds):.3f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", type=lambda names: names.split(","), default=["1b", "8b"])
    parser.add_argument("--workloads", type=lambda names: names.split(","), default=[*PLAIN, "BEAM", "FULL"])
    parser.add_argument("--vllm", type=Path, help="directory that holds vLLM and what it needs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/local/gpu"))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if unknown := set(arguments.shapes) - set(SHAPES):
        parser.error(f"unknown shapes: {', '.join(sorted(unknown))}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for shape in arguments.shapes:
        results += measure_shape(shape, arguments)
        report = {"versions": versions(), "results": results}
        (arguments.out / "results.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(versions()))
    print(table(results))


if __name__ == "__main__":
    main()
