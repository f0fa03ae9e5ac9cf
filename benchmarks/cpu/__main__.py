"""Compare the engines on this machine.

All engines are loaded, then take turns workload by workload, so that whatever else the machine does
meets all of them alike. Writes ``result.json``, ``table.md`` and ``chart.svg`` after every turn; what is
in ``result.json`` already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES, make_llama
from benchmarks.cpu.bandwidth import read_bandwidth
from benchmarks.cpu.engines import ENGINES, ROOT
from benchmarks.cpu.peer import Peer, timed
from benchmarks.cpu.report import write_report
from benchmarks.cpu.workloads import NAMES
from benchmarks.machine import processor, today
from utils.commands import command, with_interpreter


class Record:
    """Everything measured so far, kept in a file: a run that was cut off is gone on with by the next.

    Args:
        directory: where ``result.json`` is, or will be.
        setting: what must be equal for figures to stand side by side.

    Raises:
        SystemExit: the file is of another setting.
    """

    def __init__(self, directory: Path, setting: dict[str, Any]) -> None:
        self._directory = directory
        self.result: dict[str, Any] = setting | {"read_bandwidths": [], "versions": {}, "figures": {}}
        file = directory / "result.json"
        if file.is_file():
            found = json.loads(file.read_text())
            other = {key: found.get(key) for key in setting if found.get(key) != setting[key]}
            if other:
                raise SystemExit(f"{file} was measured with {other}: choose another --output")
            self.result = found

    def figures(self, workload: str, engine: str) -> list[float]:
        """Those of a workload and engine, one for each repetition; append to it what is new."""
        by_engine: dict[str, list[float]] = self.result["figures"].setdefault(workload, {})
        return by_engine.setdefault(engine, [])

    def lacking(self, workload: str, engines: list[str], repetitions: int) -> list[str]:
        """The engines with fewer repetitions than that."""
        return [name for name in engines if len(self.figures(workload, name)) < repetitions]

    def save(self) -> None:
        self.result["date"] = today()
        write_report(self.result, self._directory)


def measure(
    peers: dict[str, Peer], workloads: list[str], repetitions: int, record: Record, deadline: float
) -> bool:
    """Fill the record; False: `deadline` (of `time.monotonic`) came first."""
    for workload in workloads:
        is_warm: set[str] = set()
        while names := record.lacking(workload, list(peers), repetitions):
            done = min(len(record.figures(workload, name)) for name in names)
            for name in [name for name in names if len(record.figures(workload, name)) == done]:
                if time.monotonic() > deadline:
                    return False
                if name not in is_warm:
                    timed(peers[name], workload, -1)
                    is_warm.add(name)
                record.figures(workload, name).append(timed(peers[name], workload, done))
            record.save()
        figures = {name: record.figures(workload, name) for name in peers}
        print(workload, {name: round(statistics.median(values), 2) for name, values in figures.items()})
    return True


def main() -> None:
    """Parse the command line, measure what is not measured yet, report."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), prog=command("-m", "benchmarks.cpu")
    )
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    usual = [name for name, engine in ENGINES.items() if not engine.masked]
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=usual)
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--gguf", metavar="TYPE", help="engines run one GGUF file, e.g. Q8_0 or Q4_K_M")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then; call again to go on")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "cpu-engines")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/local/cpu-SHAPE[-TYPE]")
    options = parser.parse_args()
    if options.gguf:
        options.engines = [name for name in options.engines if ENGINES[name].reads_gguf]
    deadline = time.monotonic() + 60 * options.minutes
    options.environments.mkdir(parents=True, exist_ok=True)
    model = make_llama(options.environments / f"llama-{options.shape}", SHAPES[options.shape])
    setting = {
        "processor": processor(),
        "threads": options.threads,
        "shape": options.shape,
        "weight_bytes": SHAPES[options.shape].bytes_per_token,
    }
    if options.gguf:
        setting |= {"gguf": options.gguf, "weight_bytes": 0}
    name = "-".join(part for part in ("cpu", options.shape, options.gguf) if part)
    directory = options.output or ROOT / "benchmarks" / "results" / "local" / name
    record = Record(directory, setting)
    lacking = {
        name
        for workload in options.workloads
        for name in record.lacking(workload, options.engines, options.repetitions)
    }
    with ExitStack() as stack:
        peers = {}
        if lacking:
            record.result["read_bandwidths"].append(read_bandwidth(options.threads))
        for name in [name for name in options.engines if name in lacking]:
            print(f"loading {ENGINES[name].name}", file=sys.stderr, flush=True)
            peers[name] = Peer(ENGINES[name], model, options.environments, options.threads, options.gguf)
            stack.callback(peers[name].close)
            record.result["versions"][name] = peers[name].versions
        is_complete = measure(peers, options.workloads, options.repetitions, record, deadline)
    record.save()
    print((directory / "table.md").read_text())
    if not is_complete:
        print("not all is measured yet: call again to go on", file=sys.stderr)


if __name__ == "__main__":
    main()
