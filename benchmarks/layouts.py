"""Replicas or tensor parallelism: the same GPUs or processors for several servers, or for one that splits.

    .venv/bin/python -m benchmarks.layouts                          two layouts of two processors
    .venv/bin/python -m benchmarks.layouts --gpus 0,1 --shape 8b    of two GPUs

Each layout is a fleet, started by `start_app.py --fleet`, asked through its gateway, and stopped before the
next one starts. Of each: the time of an answer by its tokens (the prompt's time included: random weights
make tokens without text, so that a first token is not seen), and output tokens a second of all clients.
`layouts.json` has what was measured so far, whatever happens to the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES, make_llama
from benchmarks.loadgen.arrivals import parse_arrivals
from benchmarks.loadgen.endpoint import Endpoint
from benchmarks.loadgen.measures import Objective, Summary, summarise
from benchmarks.loadgen.run import run
from benchmarks.loadgen.traffic import parse_traffic
from benchmarks.machine import processor, today
from benchmarks.ports import neighbouring_ports
from benchmarks.processes import family
from utils.commands import ROOT, command, with_interpreter
from utils.running import Directories, find

MODEL_ID = "layouts"
LAYOUTS = ("one", "replicas", "split")
"""One server on the first GPU (of processors: with a thread on each); one on each; one split over all."""
ANSWER_TOKENS = 64


def fleet_of(layout: str, options: argparse.Namespace, model: Path, directory: Path) -> tuple[Path, int]:
    """Write the fleet of a layout; returns its file and the gateway's port."""
    devices: list[str] = options.gpus or [""] * options.processors
    replicas = len(devices) if layout == "replicas" else 1
    on_cpu = not options.gpus
    config: dict[str, Any] = {
        "model_id": MODEL_ID,
        "model_loading_config": {
            "model_name_or_path": str(model),
            "torch_dtype": "bfloat16",
            "device": "cpu" if on_cpu else "cuda",
        },
        "cache_config": {"enable_prefix_cache": False, "num_blocks": 1024 if on_cpu else None},
        "parallel_config": {"tensor_parallel_size": len(devices) if layout == "split" else 1},
    }
    (directory / "cb_server_config.json").write_text(json.dumps(config))
    (directory / "client_config.json").write_text("{}")
    port = neighbouring_ports(1 + replicas)
    # all processors for the one server, one for each replica and each rank
    threads = len(devices) if layout == "one" else 1
    entry = {
        "name": layout,
        "config": "cb_server_config.json",
        "port": port + 1,
        "replicas": replicas,
        "gpus": [] if on_cpu else devices[:1] if layout == "one" else devices,
        "environment": {"OMP_NUM_THREADS": str(threads)} if on_cpu else {},
    }
    fleet = {"gateway": {"config": "client_config.json", "port": port}, "servers": [entry]}
    path = directory / "fleet.json"
    path.write_text(json.dumps(fleet))
    return path, port


@contextmanager
def started(fleet: Path, directory: Path) -> Iterator[None]:
    """The fleet, ready while the block lasts."""
    start = [sys.executable, str(ROOT / "start_app.py"), "--fleet", str(fleet)]
    start += ["--run_dir", str(directory / "run")]
    try:
        subprocess.run([*start, "--log_dir", str(directory / "logs")], check=True)
        yield
    finally:
        subprocess.run([*start, "--stop"], check=False)


def ask(url: str, clients: int, count: int, seed: int) -> Summary:
    """The measurements of `clients` clients at a time.

    Raises:
        RuntimeError: a request failed.
    """
    traffic = parse_traffic("exponential", answer=f"fixed:{ANSWER_TOKENS}", prompt="uniform:64:192")
    requests = traffic.requests(count, seed)
    endpoint = Endpoint("layout", url, MODEL_ID)
    summary = summarise(
        asyncio.run(run(endpoint, requests, parse_arrivals(f"closed:{clients}"))), Objective()
    )
    if summary.errors:
        raise RuntimeError(f"requests failed: {summary.errors}")
    return summary


def host_memory(directory: Path) -> dict[str, int]:
    """MiB of memory of each service, what processes share counted once (Linux)."""
    found = {}
    for service in find(Directories(directory / "run")):
        total = 0
        for pid in family(service.pid):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:")))
        found[service.name] = total // 1024
    return found


def measure(layout: str, options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """The figures of one layout."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        fleet, port = fleet_of(layout, options, model, directory)
        url = f"http://127.0.0.1:{port}"
        with started(fleet, directory):
            most = max(options.clients)
            ask(url, most, 2 * most, seed=0)
            found: dict[str, Any] = {"host_memory_mib": host_memory(directory), "clients": {}}
            for clients in options.clients:
                count = max(4, 3 * clients)
                runs = [ask(url, clients, count, seed) for seed in range(1, 1 + options.repetitions)]
                rates = [each.tokens_per_second for each in runs]
                per_token = [1000 * each.latency["p50"] / ANSWER_TOKENS for each in runs]
                found["clients"][clients] = {
                    "tokens_per_second": statistics.median(rates),
                    "tokens_per_second_all": rates,
                    "ms_per_token": statistics.median(per_token),
                    "ms_per_token_all": per_token,
                }
            return found


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__),
        prog=command("-m", "benchmarks.layouts"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--gpus", type=lambda text: text.split(","), help="numbers of GPUs; default: processors")
    add("--processors", type=int, default=len(os.sched_getaffinity(0)), help="without --gpus, as many")
    add("--shape", choices=SHAPES, default="125m")
    add("--layouts", type=lambda text: text.split(","), default=list(LAYOUTS))
    add("--clients", type=lambda text: [int(each) for each in text.split(",")], default=[1, 16])
    add("--repetitions", type=int, default=3)
    add("--model", type=Path, help="a checkpoint instead of one that is made")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "local" / "layouts.json")
    options = parser.parse_args()
    model = options.model or make_llama(ROOT / "build" / f"llama-{options.shape}", SHAPES[options.shape])
    result: dict[str, Any] = {
        "date": today(),
        "processor": processor(),
        "gpus": options.gpus,
        "processors": None if options.gpus else options.processors,
        "model": str(options.model or options.shape),
        "layouts": {},
    }
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        result["gpu_names"] = listed.stdout.splitlines()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for layout in options.layouts:
        try:
            result["layouts"][layout] = measure(layout, options, model)
        except Exception as error:  # the others are still worth knowing
            result["layouts"][layout] = {"error": f"{type(error).__name__}: {error}"}
        options.output.write_text(json.dumps(result, indent=1))
        print(layout, json.dumps(result["layouts"][layout]), flush=True)


if __name__ == "__main__":
    main()
