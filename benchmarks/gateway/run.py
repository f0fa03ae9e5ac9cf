"""What a gateway costs: this one beside nginx, vLLM production-stack's router and LiteLLM's proxy.

    .venv/bin/python -m benchmarks.gateway.run                        # all that install, three rounds
    .venv/bin/python -m benchmarks.gateway.run --only ours,nginx --rounds 1
    .venv/bin/python -m benchmarks.gateway.run --soak 1000000         # memory of ours over a million requests

Each gateway runs pinned to one core, the stub server and the load on another; the order rotates
from round to round, and medians with their spread are reported. Peers are installed into
environments under `--directory`; one that cannot be had is left out, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.gateway.measure import (
    CELLS,
    Cell,
    build,
    measure,
    resident_bytes,
    wait_until_it_answers,
)
from benchmarks.gateway.peers import PEERS, ROOT, NotInstallable, Peer
from benchmarks.machine import today
from benchmarks.ports import free_port
from benchmarks.processes import running
from utils.commands import with_interpreter

COLUMNS = {
    "c=1": ("p50_us", "p99_us"),
    "c=64": ("rps", "cpu_us_per_request", "p99_us"),
    "64 streams": ("cpu_us_per_event", "age_p50_us", "age_p99_us", "first_event_p50_us"),
}
"""What is reported of each load."""


def main() -> None:
    arguments = parse()
    directory = arguments.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    build(directory)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two cores are needed: one for the gateway, one for the stub and the load")
    bench = Bench(directory, gateway_core=cores[1], load_core=cores[0], seconds=arguments.seconds)
    if arguments.soak:
        bench.soak(arguments.soak)
        return
    names = arguments.only.split(",")
    peers = bench.install(names, dict(source.split("=", 1) for source in arguments.source))
    records: list[dict[str, Any]] = []
    for round_ in range(arguments.rounds):
        turn = round_ % len(peers)
        for name in [*peers[turn:], *peers[:turn]]:
            records.append(bench.run(name))
            print(f"round {round_ + 1}/{arguments.rounds}: {name}", flush=True)
    table = report(records)
    result = {
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "date": today(),
        "records": records,
    }
    (directory / "results.json").write_text(json.dumps(result, indent=1))
    (directory / "results.md").write_text(table)
    print(f"\n{table}\n{directory / 'results.json'}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument(
        "--soak", type=int, metavar="REQUESTS", help="only this: memory over this number of requests"
    )
    parser.add_argument("--directory", type=Path, default=ROOT / "benchmarks/results/local/gateway")
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="PEER=PACKAGE",
        help="install a peer from elsewhere, e.g. production-stack=git+file:///path",
    )
    return parser.parse_args()


class Bench:
    """The machine's two cores and what runs on them."""

    def __init__(self, directory: Path, gateway_core: int, load_core: int, seconds: float) -> None:
        self._directory = directory
        self._gateway_core = gateway_core
        self._load_core = load_core
        self._seconds = seconds
        self._stub_port = free_port()
        self._installed: dict[str, Peer] = {}
        self._ports: dict[str, int] = {}

    def install(self, names: Sequence[str], sources: dict[str, str]) -> list[str]:
        """Install the peers of `names`; returns those that can be measured, `direct` first."""
        for name in names:
            home = self._directory / name
            home.mkdir(exist_ok=True)
            self._ports[name] = free_port()
            print(f"installing {name} …", flush=True)
            try:
                self._installed[name] = PEERS[name](
                    home, self._stub_port, self._ports[name], sources.get(name)
                )
            except NotInstallable as reason:
                print(f"left out: {name}: {reason}")
        return ["direct", *self._installed]

    def run(self, name: str, cells: Iterable[Cell] = CELLS) -> dict[str, Any]:
        """All loads on the gateway `name`, or on the stub itself."""
        record: dict[str, Any] = {"name": name}
        load = self._directory / "load"
        with ExitStack() as stack:
            stub = [str(self._directory / "stub"), str(self._stub_port)]
            stack.enter_context(running(stub, self._directory / "stub.log", core=self._load_core))
            time.sleep(0.2)
            port, pid = self._stub_port, None
            if name != "direct":
                peer, port = self._installed[name], self._ports[name]
                log = self._directory / f"{name}.log"
                began = time.monotonic()
                process = stack.enter_context(
                    running(peer.command, log, peer.environment, core=self._gateway_core)
                )
                wait_until_it_answers(peer, port, process, log)
                record["start_s"] = round(time.monotonic() - began, 1)
                pid = process.pid
            for cell in cells:
                record[cell.name] = measure(load, self._load_core, port, cell, self._seconds, pid)
        return record

    def soak(self, requests: int) -> None:
        """Print how the memory of our gateway grows over `requests`."""
        self.install(["ours"], {})
        peer, port = self._installed["ours"], self._ports["ours"]
        load, log = self._directory / "load", self._directory / "ours.log"
        stub = [str(self._directory / "stub"), str(self._stub_port)]
        with (
            running(stub, self._directory / "stub.log", core=self._load_core),
            running(peer.command, log, peer.environment, core=self._gateway_core) as process,
        ):
            wait_until_it_answers(peer, port, process, log)
            done = 0.0
            while done < requests:
                result = measure(load, self._load_core, port, CELLS[1], 10, process.pid)
                done += result["requests"]
                megabytes = resident_bytes(process.pid) / 1e6
                print(
                    f"{done:>12,.0f} requests {megabytes:>8.1f} MB {result['errors']:.0f} errors", flush=True
                )


def report(records: Sequence[dict[str, Any]]) -> str:
    """A table of medians, with the least and the most of the rounds."""
    headings = [f"{cell}: {column}" for cell, columns in COLUMNS.items() for column in columns]
    lines = ["| gateway | " + " | ".join(headings) + " | errors | RSS MB |"]
    lines.append("|---" * (len(headings) + 3) + "|")
    for name in dict.fromkeys(record["name"] for record in records):
        rounds = [record for record in records if record["name"] == name]
        cells = [
            spread([each[cell].get(column) for each in rounds])
            for cell, columns in COLUMNS.items()
            for column in columns
        ]
        errors = sum(each[cell.name]["errors"] for each in rounds for cell in CELLS)
        memory = spread([each[CELLS[-1].name]["rss_mb"] for each in rounds])
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {errors:.0f} | {memory} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    middle = f"{statistics.median(known):,.0f}"
    return middle if len(known) == 1 else f"{middle} ({min(known):,.0f}–{max(known):,.0f})"


if __name__ == "__main__":
    main()
