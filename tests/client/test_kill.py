"""kill -9 and rolling restarts of server processes under load: no request is lost or wrong."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import aiohttp

from tests.client.processes import complete, free_port, gateway, start
from tests.client.stub import text_of, tokens_of

Command = Callable[[int], Sequence[str]]


class Fleet:
    """Three servers, each started again whenever it ends."""

    def __init__(self, command: Command, directory: Path) -> None:
        self._command = command
        self._directory = directory
        self._running: dict[int, Popen[bytes]] = {}
        self._ports = [free_port() for _ in range(3)]

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self._ports]

    @contextmanager
    def run(self) -> Iterator[None]:
        for port in self._ports:
            self._start(port)
        try:
            yield
        finally:
            for running in self._running.values():
                running.kill()
                running.wait()

    def _start(self, port: int) -> None:
        log = self._directory / f"server-{port}.log"
        self._running[port] = start(self._command(port), {"OMP_NUM_THREADS": "1"}, log)

    async def restart(self, number: int, how: signal.Signals) -> None:
        """End server `number` by `how` and start it again."""
        port = self._ports[number]
        running = self._running[port]
        running.send_signal(how)
        while running.poll() is None:  # noqa: ASYNC110  # a process
            await asyncio.sleep(0.02)
        self._start(port)


def stub_server(port: int) -> Sequence[str]:
    return sys.executable, "-m", "tests.client.stub", str(port), "0.02"


async def test_kill_9_every_two_seconds(tmp_path: Path) -> None:
    fleet = Fleet(stub_server, tmp_path)
    dice = random.Random(0)
    work = [(f"prompt {i}", dice.randint(1, 200), bool(i % 2)) for i in range(600)]
    with fleet.run():
        async with gateway(tmp_path, fleet.urls, replica_wait_seconds=15) as (_, session):
            killing = asyncio.create_task(keep_killing(fleet))
            wrong = await compare(session, [(*item, text_of(tokens_of(*item[:2]))) for item in work])
            assert killing.cancel()
            assert wrong == []
            await nothing_is_held(session, len(work))


async def keep_killing(fleet: Fleet) -> None:
    for number in itertools.cycle(range(3)):
        await asyncio.sleep(2)
        await fleet.restart(number, signal.SIGKILL)


async def compare(session: aiohttp.ClientSession, work: Sequence[tuple[str, int, bool, str]]) -> list[object]:
    """What came out other than expected of `work`, 200 requests at a time."""
    room = asyncio.Semaphore(200)

    async def one(prompt: str, tokens: int, stream: bool, expected: str) -> object:
        async with room:
            answer = await complete(session, prompt, tokens, stream)
        return None if answer == (200, expected) else (prompt, stream, answer)

    return [wrong for wrong in await asyncio.gather(*[one(*item) for item in work]) if wrong]


async def nothing_is_held(session: aiohttp.ClientSession, requests: int) -> None:
    async with session.get("/status") as response:
        status = await response.json()
    assert status["requests"]["received"] == status["requests"]["finished"] == requests
    assert status["requests"]["in_flight"] == status["requests"]["waiting"] == 0
    assert all(r["requests_in_flight"] == r["leased_tokens"] == 0 for r in status["replicas"])
