"""Compare the engines on this machine.

All engines are loaded, then take turns workload by workload, so that whatever else the machine does
meets all of them alike. Writes ``result.json``, ``table.md`` and ``chart.svg``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES, make_llama
from benchmarks.cpu.bandwidth import read_bandwidth
from benchmarks.cpu.engines import ENGINES, ROOT, Engine, environment, interpreter
from benchmarks.cpu.peers.worker import MARK
from benchmarks.cpu.report import write_report
from benchmarks.cpu.workloads import NAMES, figure

_PAUSE_SECONDS = 0.5
"""Between turns, until the threads of the last engine have stopped spinning."""


class Peer:
    """A running engine.

    Args:
        engine: which.
        model: checkpoint directory.
        environments: where engines are installed.
        threads: processors that it may use.
    """

    def __init__(self, engine: Engine, model: Path, environments: Path, threads: int) -> None:
        self.engine = engine
        python = interpreter(engine, environments)
        arguments = [str(model)]
        if engine.module == "llama_cpp_peer":
            arguments = [str(_gguf(model, python)), str(threads)]
        self._log = (environments / f"{engine.module}.log").open("w")
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.cpu.peers.{engine.module}", *arguments],
            cwd=ROOT,
            env=environment(engine, python, threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.versions: dict[str, str] = self._read()["versions"]

    def time(self, workload: str, repetition: int) -> float:
        """Seconds that a workload takes."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{workload} {repetition}\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def _read(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
            self._log.write(line)
        raise RuntimeError(f"{self.engine.name} ended; its log is {self._log.name}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()


def _gguf(model: Path, python: Path) -> Path:
    """The checkpoint as llama.cpp reads it, written by the engine's own environment."""
    file = model / "model-bf16.gguf"
    if not file.is_file():
        subprocess.run([python, "-m", "benchmarks.cpu.gguf", model, file], cwd=ROOT, check=True)
    return file


def measure(
    peers: dict[str, Peer], workloads: list[str], repetitions: int
) -> dict[str, dict[str, list[float]]]:
    """Figures by workload and engine, a list over the repetitions."""
    found: dict[str, dict[str, list[float]]] = {}
    for workload in workloads:
        figures = found[workload] = {name: [] for name in peers}
        for repetition in range(-1, repetitions):  # the first one warms up
            for name, peer in peers.items():
                time.sleep(_PAUSE_SECONDS)
                seconds = peer.time(workload, repetition)
                first = peer.time("C2-first", repetition) if workload == "C2" else 0.0
                if repetition >= 0:
                    figures[name].append(figure(workload, seconds, first))
        medians = {name: sorted(values)[len(values) // 2] for name, values in figures.items()}
        print(workload, {name: round(value, 2) for name, value in medians.items()}, flush=True)
    return found


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.cpu")
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "cpu-engines")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "local" / "cpu")
    options = parser.parse_args()
    options.environments.mkdir(parents=True, exist_ok=True)
    model = make_llama(options.environments / f"llama-{options.shape}", SHAPES[options.shape])
    with ExitStack() as stack:
        peers = {}
        for name in options.engines:
            print(f"loading {ENGINES[name].name}", file=sys.stderr, flush=True)
            peers[name] = Peer(ENGINES[name], model, options.environments, options.threads)
            stack.callback(peers[name].close)
        figures = measure(peers, options.workloads, options.repetitions)
        versions = {name: peer.versions for name, peer in peers.items()}
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": processor(),
        "threads": options.threads,
        "shape": options.shape,
        "weight_bytes": SHAPES[options.shape].bytes_per_token,
        "read_bandwidth": read_bandwidth(options.threads),
        "versions": versions,
        "figures": figures,
    }
    write_report(result, options.output)
    print((options.output / "table.md").read_text())


def processor() -> str:
    """What the system calls it, with the matrix instructions that it has."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    lines = {key.strip(): value.strip() for key, value in pairs}
    special = [
        name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in lines.get("flags", "")
    ]
    return f"{lines.get('model name', platform.machine())} ({', '.join(special[:2])})"


if __name__ == "__main__":
    main()
