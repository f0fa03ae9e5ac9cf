"""kill -9 and rolling restarts of server processes under load: no request is lost or wrong."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import aiohttp
import pytest

from benchmarks.ports import free_port
from tests.client.calls import text_of, tokens_of
from tests.client.processes import complete, gateway, start

Command = Callable[[int], Sequence[str]]


class Fleet:
    """Three servers, each started again whenever it ends."""

    def __init__(self, command: Command, directory: Path) -> None:
        self._command = command
        self._directory = directory
        self._running: dict[int, Popen[bytes]] = {}
        self._ports = [free_port() for _ in range(3)]
        self.kills = 0

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
        self.kills += 1


def stub_server(port: int) -> Sequence[str]:
    return sys.executable, "-m", "tests.client.stub", str(port), "0.02"


async def test_kill_9_every_two_seconds(tmp_path: Path) -> None:
    fleet = Fleet(stub_server, tmp_path)
    dice = random.Random(0)
    # whole answers that take twice as long as any server lives, and others
    work = [(f"long {i}", 600, False) for i in range(6)]
    work += [(f"prompt {i}", dice.randint(1, 200), bool(i % 2)) for i in range(600)]
    with fleet.run():
        async with gateway(tmp_path, fleet.urls, replica_wait_seconds=15) as (_, session):
            killing = asyncio.create_task(keep_killing(fleet))
            wrong = await compare(session, [(*item, text_of(tokens_of(*item[:2]))) for item in work])
            assert killing.cancel()
            assert wrong == []
            await nothing_is_held(session, len(work))


async def test_rolling_restart_of_servers_and_configuration(tmp_path: Path) -> None:
    fleet = Fleet(stub_server, tmp_path)
    dice = random.Random(1)
    work = [(f"prompt {i}", dice.randint(1, 200), bool(i % 2)) for i in range(400)]
    path = tmp_path / "client_config.json"

    async def roll() -> None:
        for number in range(3):
            await fleet.restart(number, signal.SIGTERM)
            # in another order, and once without the server that has just come back
            config = json.loads(path.read_text())
            urls = fleet.urls[::-1] if number % 2 else fleet.urls[:number] + fleet.urls[number + 1 :]
            path.write_text(json.dumps(config | {"continuous_batching_server_urls": urls}))
            await asyncio.sleep(1.5)

    with fleet.run():
        async with gateway(tmp_path, fleet.urls, replica_wait_seconds=15) as (_, session):
            rolling = asyncio.create_task(roll())
            wrong = await compare(session, [(*item, text_of(tokens_of(*item[:2]))) for item in work])
            await rolling
            assert wrong == []
            async with session.get("/status") as response:
                assert (await response.json())["config"]["loads"] == 4
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


def cb_server(port: int) -> Sequence[str]:
    return sys.executable, "continuous_batching_server_app.py", "--port", str(port), "--model_id", "m"


REAL: dict[str, Any] = {"max_wait_seconds": 300, "stream_wait_seconds": 300, "replica_wait_seconds": 60}


async def undisturbed(session: aiohttp.ClientSession, seed: int) -> list[tuple[str, int, bool, str]]:
    """200 requests with the answers that they get while nothing happens, half of them streamed."""
    dice = random.Random(seed)
    openings = ["Once upon a time", "What is 17 plus 25?", "The old king", "Tell me a story."]
    work = [(f"{dice.choice(openings)} {i}", dice.randint(1, 150), bool(i % 2)) for i in range(200)]
    answers = await asyncio.gather(*[complete(session, *item) for item in work])
    assert {status for status, _ in answers} == {200}
    return [(*item, text) for item, (_, text) in zip(work, answers, strict=True)]


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_kill_9_of_real_servers(tmp_path: Path) -> None:
    """Whatever serves is killed after two seconds of it; answers equal the undisturbed ones."""
    fleet = Fleet(cb_server, tmp_path)
    with fleet.run():
        async with gateway(tmp_path, fleet.urls, patience=180, **REAL) as (_, session):
            expected = await undisturbed(session, 0)
            killing = asyncio.create_task(kill_what_serves(fleet, session))
            wrong = []
            rounds = 0
            while fleet.kills < 5:
                wrong += await compare(session, expected)
                rounds += 1
            assert killing.cancel()
            assert wrong == []
            await nothing_is_held(session, (1 + rounds) * len(expected))


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_rolling_restart_of_real_servers(tmp_path: Path) -> None:
    """Each server goes with SIGTERM and the next once it is back; the list of servers changes too."""
    fleet = Fleet(cb_server, tmp_path)
    path = tmp_path / "client_config.json"

    async def roll(session: aiohttp.ClientSession) -> None:
        for number in range(3):
            await fleet.restart(number, signal.SIGTERM)
            config = json.loads(path.read_text())
            path.write_text(json.dumps(config | {"continuous_batching_server_urls": fleet.urls[::-1]}))
            while await states(session) != ["ready"] * 3:  # noqa: ASYNC110  # processes
                await asyncio.sleep(0.5)

    with fleet.run():
        async with gateway(tmp_path, fleet.urls, patience=180, **REAL) as (_, session):
            expected = await undisturbed(session, 1)
            rolling = asyncio.create_task(roll(session))
            wrong = []
            rounds = 0
            while not rolling.done():
                wrong += await compare(session, expected)
                rounds += 1
            await rolling
            assert wrong == []
            await nothing_is_held(session, (1 + rounds) * len(expected))


async def states(session: aiohttp.ClientSession) -> list[str]:
    async with session.get("/status") as response:
        return [replica["state"] for replica in (await response.json())["replicas"]]


async def kill_what_serves(fleet: Fleet, session: aiohttp.ClientSession, most: float = float("inf")) -> None:
    """Every two seconds kill -9 a server that is ready; `most` servers at most."""
    while fleet.kills < most:
        await asyncio.sleep(2)
        async with session.get("/status") as response:
            replicas = (await response.json())["replicas"]
        ready = [replica["url"] for replica in replicas if replica["state"] == "ready"]
        if ready:
            await fleet.restart(fleet.urls.index(random.choice(ready)), signal.SIGKILL)
