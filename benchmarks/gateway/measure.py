"""One gateway, one load: what it costs. Linux only (it reads /proc and pins processes)."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gateway.peers import KEY, Peer
from benchmarks.processes import StartError, tail

ROUTE = "/v1/chat/completions"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
START_SECONDS = 120


@dataclass(frozen=True)
class Cell:
    """A load: `connections` clients, each sending one request after the other."""

    name: str
    connections: int
    stream: bool = False

    @property
    def body(self) -> str:
        """A small chat request; a stream has 64 events, 5 ms apart."""
        prompt = "Write one sentence about a fox and a dog, and keep it short."
        body: dict[str, Any] = {
            "model": "stub",
            "messages": [{"role": "user", "content": prompt + " CHUNKS=64; PACE=5000;"}],
            "max_tokens": 64,
        }
        return json.dumps(body | {"stream": True} if self.stream else body)


CELLS = (Cell("c=1", 1), Cell("c=64", 64), Cell("64 streams", 64, stream=True))


def build(directory: Path) -> None:
    """Compile the stub and the load generator."""
    source = Path(__file__).parent
    for name in ("stub", "load"):
        command = ["gcc", "-O2", "-Wall", "-o", str(directory / name), str(source / f"{name}.c")]
        subprocess.run(command, check=True)


def wait_until_it_answers(peer: Peer, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once a whole and a streamed answer come through."""
    end = time.monotonic() + START_SECONDS
    for cell, wanted in ((CELLS[0], b"usage"), (CELLS[2], b"[DONE]")):
        while wanted not in _post(port, cell.body):
            if process.poll() is not None or time.monotonic() > end:
                raise StartError(f"{peer.name} did not come up:\n{tail(log)}")
            time.sleep(0.3)


def _post(port: int, body: str) -> bytes:
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{ROUTE}", body.encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return bytes(response.read())
    except (urllib.error.URLError, OSError):
        return b""


def measure(
    load: Path, core: int, port: int, cell: Cell, seconds: float, pid: int | None
) -> dict[str, float]:
    """Run the load of `cell` from `core` and read what process `pid` spent meanwhile."""
    warm = seconds / 4
    command = [
        "taskset",
        "-c",
        str(core),
        load,
        str(port),
        ROUTE,
        str(cell.connections),
        str(warm),
        str(seconds),
    ]
    spent, began = cpu_seconds(pid), time.monotonic()
    done = subprocess.run(
        [*map(str, command), cell.body, f"Authorization: Bearer {KEY}"],
        check=True,
        capture_output=True,
        text=True,
    )
    spent, wall = cpu_seconds(pid) - spent, time.monotonic() - began
    result: dict[str, float] = json.loads(done.stdout)
    share = result["seconds"] / wall  # of the CPU time, the warming up taken out
    for unit in ("requests", "events"):
        if result[unit]:
            result[f"cpu_us_per_{unit[:-1]}"] = round(1e6 * spent * share / result[unit], 1)
    result["busy"] = round(spent / wall, 2)
    result["rss_mb"] = round(resident_bytes(pid) / 1e6, 1)
    return result


def family(pid: int | None) -> list[int]:
    """`pid` and all processes below it."""
    if pid is None:
        return []
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += family(int(child))
    return found


def cpu_seconds(pid: int | None) -> float:
    total = 0
    for each in family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def resident_bytes(pid: int | None) -> int:
    return sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) * PAGE for each in family(pid))
