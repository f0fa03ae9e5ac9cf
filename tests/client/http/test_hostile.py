"""Hostile clients of every kind at once, beside good ones.

    python -m tests.client.http.test_hostile [SECONDS]

prints what ``/health`` took meanwhile. The gateway is a process of its own, and so are the hostile
clients and the probe of ``/health``. Started so, the gateway has a core to itself and all others share the
rest: clients send as fast as they can, and would otherwise take the processor from it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.client.calls import text_of, tokens_of
from tests.client.http.hostile import AWAITED, EVENT_TOKEN, KEY, attack
from tests.client.processes import complete, gateway, gunicorn
from tests.client.stub import Stub, stubs
from tests.raw_http import connected, response
from tests.serving import eventually

LIMITS: dict[str, Any] = {
    "api_keys": [KEY],
    "event_token": EVENT_TOKEN,
    "max_joined_servers": 8,
    "client_timeout_seconds": 3,
    "body_timeout_seconds": 3,
    "max_buffered_body_bytes": 64 * 2**20,
}
GOOD_CLIENTS = 8


def probe(port: int, seconds: float, results: Any) -> None:
    """Milliseconds of ``GET /health``, 50 times a second, each on a new connection."""
    taken = []

    async def main() -> None:
        end = time.monotonic() + seconds
        while (begin := time.monotonic()) < end:
            async with connected(port) as (reader, writer):
                writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert (await response(reader))[0] == 200
            taken.append(1e3 * (time.monotonic() - begin))
            await asyncio.sleep(0.02)

    asyncio.run(main())
    results.put(taken)


@contextmanager
def in_process(target: Any, *arguments: Any) -> Iterator[Any]:
    """What `target` puts into its last argument, a queue."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=target, args=(*arguments, results), daemon=True)
    process.start()
    try:
        yield results
    finally:
        process.kill()
        process.join()


@dataclass
class Report:
    good: Counter[str] = field(default_factory=Counter)
    visits: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    seconds: float = 0

    def __str__(self) -> str:
        health = sorted(self.health)
        p50, p99 = (health[int(share * (len(health) - 1))] for share in (0.5, 0.99))
        return (
            f"{self.seconds:g} s: health p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {health[-1]:.1f} ms "
            f"({len(health)} probes); good answers {dict(self.good)}; hostile visits {self.visits}"
        )


async def good_client(session: aiohttp.ClientSession, number: int, good: Counter[str]) -> None:
    """Completions one after the other, each compared with what it must be."""
    while True:
        prompt, tokens = f"p{number}", 20
        answer = await complete(session, prompt, tokens, stream=number % 2 == 0)
        right = answer == (200, text_of(tokens_of(prompt, tokens)))
        good["right" if right else f"wrong: {answer}"[:200]] += 1
        await asyncio.sleep(0.05)


def give_a_core(pid: int) -> None:
    """One core to a process and its children, the rest to this process and what it starts from now on."""
    own, *rest = sorted(os.sched_getaffinity(0))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    for each in (pid, *map(int, children)):
        os.sched_setaffinity(each, {own})
    os.sched_setaffinity(0, rest)


async def siege(directory: Path, seconds: float, *, apart: bool = False) -> Report:
    """A gateway with all hostile and all good clients for so long; nothing may be held at its end.

    Args:
        apart: the gateway gets a core to itself.
    """
    report = Report(seconds=seconds)
    servers = [Stub(seconds_per_token=0.01, padding="") for _ in range(2)]
    headers = {"Authorization": f"Bearer {KEY}"}
    urls = []
    async with stubs(*servers):
        urls = [server.url for server in servers]
        async with gateway(directory, urls, gunicorn, headers=headers, **LIMITS) as (process, session):
            if apart:
                give_a_core(process.pid)
            port = int(str(session._base_url).rpartition(":")[2].strip("/"))
            with in_process(attack, port, seconds) as attacks, in_process(probe, port, seconds) as probes:
                good = [
                    asyncio.create_task(good_client(session, i, report.good)) for i in range(GOOD_CLIENTS)
                ]
                loop = asyncio.get_running_loop()
                report.visits, report.wrong = await loop.run_in_executor(
                    None, attacks.get, True, seconds + 120
                )
                report.health = await loop.run_in_executor(None, probes.get, True, 120)
                for task in good:
                    task.cancel()
                ended = await asyncio.gather(*good, return_exceptions=True)
                report.wrong += [repr(e) for e in ended if not isinstance(e, asyncio.CancelledError)]
            await eventually(lambda: all(server.live == 0 for server in servers), 60)
            async with session.get("/status") as answer:
                assert (await answer.json())["requests"]["in_flight"] == 0
    return report


@pytest.mark.parametrize("seconds", [pytest.param(60, marks=pytest.mark.slow), 8])
async def test_hostile_clients_do_not_harm_good_ones(tmp_path: Path, seconds: float) -> None:
    report = await siege(tmp_path, seconds)
    print(report)
    assert not report.wrong
    assert set(report.good) == {"right"}
    assert report.visits.keys() >= AWAITED
    assert len(report.health) > 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as there:
        print(asyncio.run(siege(Path(there), float(sys.argv[1]) if sys.argv[1:] else 60, apart=True)))
