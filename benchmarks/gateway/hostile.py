"""How the gateway answers while servers and clients misbehave: latency of ``/health``, and what is left.

    .venv/bin/python -m benchmarks.gateway.hostile [--seconds 8]

The gateway has one good server, one that misbehaves in a way of its own in each phase, and one whose
name does not resolve. In every phase eight clients ask for completions, half of them streamed, beside
a probe of ``/health`` a hundred times a second from a process of its own. The gateway has one core,
everything else another. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson

from benchmarks.gateway.measure import build, resident_bytes
from benchmarks.gateway.peers import ROOT, ours
from benchmarks.ports import free_port
from benchmarks.processes import running
from protocol.errors import model_not_found
from protocol.status import ServerCapacity, ServerLoad, ServerState, ServerStatus
from utils.commands import with_interpreter

MODEL = "stub"
PROBES_PER_SECOND = 100
CLIENTS = 8
IDLE, LARGE, SLOW = 1000, 4, 200
"""Connections of the hostile clients, of each kind."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class BadServer:
    """Answers heartbeats as a server of `MODEL`, and completions as `mode` says."""

    def __init__(self) -> None:
        self.mode = "refuse"
        self.port = 0

    async def start(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**25)
        self.port = server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
                if not self._answer(head, writer):
                    break
        writer.close()

    def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        if self.mode == "hung":
            return True
        if head.startswith(b"GET /status"):
            body = self._status().model_dump_json().encode()
            writer.write(HEAD % len(body) + body)
            return True
        if self.mode == "garbage":
            writer.write(b"\x00\xff\xfegarbage\r\n\r\n" * 100)
        elif self.mode == "half a body":
            writer.write(HEAD % 5000 + b'{"choices": [')
        elif self.mode == "another model":
            body = model_not_found(MODEL, ["other"]).json()
            writer.write((HEAD % len(body)).replace(b"200 OK", b"404 Not Found") + body)
            return True
        return False

    def _status(self) -> ServerStatus:
        model = "other" if self.mode == "another model" else MODEL
        return ServerStatus(
            service="continuous_batching",
            state=ServerState.DRAINING if self.mode == "refuse" else ServerState.READY,
            model_id=model,
            version="0",
            uptime_seconds=1.0,
            load=ServerLoad(),
            capacity=ServerCapacity(max_beams=512, max_waiting=1024, model_max_length=4096),
        )


def probe(core: int, port: int, seconds: float) -> list[float]:
    """Milliseconds of every ``GET /health`` in `seconds`, each on a connection kept open."""
    os.sched_setaffinity(0, {core})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    latencies, end = [], time.monotonic() + seconds
    while (begin := time.monotonic()) < end:
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        latencies.append(1e3 * (time.monotonic() - begin))
        time.sleep(max(0.0, 1 / PROBES_PER_SECOND - (time.monotonic() - begin)))
    return latencies


async def complete(session: aiohttp.ClientSession, counts: Counter[int], number: int) -> None:
    """Ask for completions one after the other, until cancelled."""
    body: dict[str, Any] = {"model": MODEL, "prompt": "CHUNKS=8; PACE=2000;", "stream": number % 2 == 0}
    while True:
        async with session.post("/completion/v2", json=body) as response:
            data = await response.read()
        good = data.endswith(b"data: [DONE]\n\n") if body["stream"] else b"choices" in data
        status = response.status if response.status != 200 or good else -1
        counts[status] += 1


async def idle(port: int, number: int) -> None:
    """A connection on which nothing is ever said."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await asyncio.sleep(3600)
    finally:
        writer.close()


async def slow(port: int, number: int) -> None:
    """Half of them never end their header, the others their body: a byte a second."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"POST /completion/v2 HTTP/1.1\r\nHost: x\r\n")
        if number % 2:
            writer.write(b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(b"a")
            await asyncio.sleep(1)
    finally:
        writer.close()


async def large(port: int, number: int) -> None:
    """Prompts of 10 MB, one after the other."""
    body = orjson.dumps({"model": MODEL, "prompt": "word " * 2_000_000})
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        while True:
            async with session.post("/completion/v2", data=body) as response:
                await response.read()


Client = Callable[[int, int], Coroutine[Any, Any, None]]
PHASES: dict[str, tuple[str, list[tuple[Client, int]]]] = {
    "none": ("refuse", []),
    "a hung server": ("hung", []),
    "a server that answers garbage": ("garbage", []),
    "a server that sends half a body": ("half a body", []),
    "a server with another model than before": ("another model", []),
    "1,000 idle connections": ("refuse", [(idle, IDLE)]),
    "10 MB bodies, 4 at once": ("refuse", [(large, LARGE)]),
    "200 clients that send a byte a second": ("refuse", [(slow, SLOW)]),
    "all of the clients, and garbage": ("garbage", [(idle, IDLE), (large, LARGE), (slow, SLOW)]),
}
"""How the bad server behaves, and the hostile clients."""


async def run(seconds: float, directory: Path) -> str:
    """All phases on one gateway; what is held afterwards."""
    load_core, gateway_core = sorted(os.sched_getaffinity(0))[:2]
    build(directory)
    bad, stub_port, port = BadServer(), free_port(), free_port()
    await bad.start()
    peer = ours(directory, stub_port, port, None)
    add_servers(directory / "client_config.json", bad.port)
    log = directory / "hostile.log"
    async with AsyncExitStack() as stack:
        stub = [str(directory / "stub"), str(stub_port)]
        stack.enter_context(running(stub, directory / "stub.log", core=load_core))
        gateway = stack.enter_context(running(peer.command, log, core=gateway_core))
        os.sched_setaffinity(0, {load_core})
        prober = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
        connector = aiohttp.TCPConnector(limit=0)
        url = f"http://127.0.0.1:{port}"
        session = await stack.enter_async_context(aiohttp.ClientSession(url, connector=connector))
        await until_ready(session)
        sockets, memory = open_sockets(gateway.pid), resident_bytes(gateway.pid) / 1e6
        print("| misbehaving | health p50 ms | p99 ms | most ms | answers by status |\n|---|---|---|---|---|")
        for name, (mode, clients) in PHASES.items():
            bad.mode = mode if mode == "refuse" else "good"
            await asyncio.sleep(6)  # until it is trusted again
            bad.mode = mode
            latencies, counts = await phase(session, prober, port, clients, seconds)
            p50, p99 = np.percentile(latencies, [50, 99])
            answers = ", ".join(f"{status}: {count}" for status, count in sorted(counts.items()))
            print(f"| {name} | {p50:.1f} | {p99:.1f} | {max(latencies):.1f} | {answers} |", flush=True)
        await asyncio.sleep(5)
        return (
            f"held afterwards: {await what_is_held(session)}; "
            f"sockets {sockets} → {open_sockets(gateway.pid)}, "
            f"memory {memory:.0f} → {resident_bytes(gateway.pid) / 1e6:.0f} MB, "
            f"{log.read_text(errors='replace').count('Traceback')} exceptions in the log"
        )


def add_servers(config: Path, port: int) -> None:
    """Put the bad server at `port` and one that cannot be found into the gateway's configuration."""
    fields = orjson.loads(config.read_bytes())
    fields["continuous_batching_server_urls"] += [f"http://127.0.0.1:{port}", "http://no-such-host.invalid:1"]
    config.write_bytes(orjson.dumps(fields))


async def phase(
    session: aiohttp.ClientSession,
    prober: ProcessPoolExecutor,
    port: int,
    clients: Sequence[tuple[Client, int]],
    seconds: float,
) -> tuple[list[float], Counter[int]]:
    """Latencies of ``/health`` in milliseconds, and the completions by status, -1 if one was cut."""
    counts: Counter[int] = Counter()
    load_core = min(os.sched_getaffinity(0))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(complete(session, counts, i)) for i in range(CLIENTS)]
        tasks += [group.create_task(client(port, i)) for client, count in clients for i in range(count)]
        loop = asyncio.get_running_loop()
        latencies = await loop.run_in_executor(prober, probe, load_core, port, seconds)
        for task in tasks:
            task.cancel()
    return latencies, counts


async def until_ready(session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(60):
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get("/ready") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)


async def what_is_held(session: aiohttp.ClientSession) -> str:
    async with session.get("/status") as response:
        status = await response.json()
    requests, replicas = status["requests"], status["replicas"]
    lost = requests["received"] - requests["finished"]
    leased = sum(replica["leased_tokens"] for replica in replicas)
    return f"{requests['in_flight']} requests, {leased} leased tokens, {lost} requests unaccounted for"


def open_sockets(pid: int) -> int:
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            links.append(os.readlink(entry))
    return sum(link.startswith("socket:") for link in links)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8, help="of each phase")
    parser.add_argument("--directory", type=Path, default=ROOT / "benchmarks/results/local/gateway")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    print("\n" + asyncio.run(run(arguments.seconds, arguments.directory.resolve())))


if __name__ == "__main__":
    main()
