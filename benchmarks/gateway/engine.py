"""What the gateway takes from another engine: C1 streamed from its server, directly and through the gateway.

    vllm serve MODEL --served-model-name benchmark --no-enable-prefix-caching
    .venv/bin/python -m benchmarks.gateway.engine http://127.0.0.1:9000

The two take turns, in another order each round; ``engine.json`` has the output tokens a second of each, and
the share of the processors that the gateway took meanwhile. The completions are greedy streams, so that
the gateway reads and hides token ids where the engine tells them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cpu.served import time_served
from benchmarks.cpu.workloads import figure, requests
from benchmarks.gateway.measure import cpu_seconds
from benchmarks.machine import today
from benchmarks.ports import free_port
from benchmarks.processes import ROOT, running, wait_until_ready
from utils.commands import command, with_interpreter

WORKLOAD = "C1"
PAUSE_SECONDS = 1.0


def measure(server: str, repetitions: int, directory: Path) -> Iterator[dict[str, float]]:
    """Output tokens a second of each round, by who answered, and the processors' share of the gateway."""
    config, log, port = directory / "client_config.json", directory / "gateway.log", free_port()
    config.write_text(json.dumps({"openai_compatible_server_urls": [server]}))
    gateway = f"http://127.0.0.1:{port}"
    urls = {"engine": server, "gateway": gateway}
    cores = len(os.sched_getaffinity(0))
    app = [sys.executable, ROOT / "client_app.py"]
    with running([*app, "--port", str(port), "--client_config_file_path", config], log) as process:
        wait_until_ready("the gateway", gateway, process, log, 60.0)
        for repetition in range(-1, repetitions):  # the first one warms up
            work = requests(WORKLOAD, repetition)
            figures: dict[str, float] = {}
            for name in sorted(urls, reverse=bool(repetition % 2)):
                time.sleep(PAUSE_SECONDS)
                before = cpu_seconds(process.pid)
                seconds = asyncio.run(time_served(urls[name], work))
                figures[name] = round(figure(WORKLOAD, seconds, 0.0), 1)
                if name == "gateway":
                    figures["processors"] = round((cpu_seconds(process.pid) - before) / seconds / cores, 4)
            if repetition >= 0:
                yield figures


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__),
        prog=command("-m", "benchmarks.gateway.engine"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("server", help="URL of the engine's server, whose model is called `benchmark`")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "local")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as directory:
        for figures in measure(options.server, options.repetitions, Path(directory)):
            rounds.append(figures)
            print(f"round {len(rounds)}/{options.repetitions}: {figures}", flush=True)
            result = {"date": today(), "machine": platform.platform(), "workload": WORKLOAD, "rounds": rounds}
            (options.output / "engine.json").write_text(json.dumps(result, indent=1) + "\n")
    share = statistics.median(each["gateway"] / each["engine"] for each in rounds)
    for name in ("engine", "gateway"):
        print(f"{name}: {statistics.median(each[name] for each in rounds):,.0f} output tok/s")
    spent = statistics.median(each["processors"] for each in rounds)
    print(f"through the gateway, median of the rounds: {share:.1%}; it took {spent:.1%} of the processors")


if __name__ == "__main__":
    main()
