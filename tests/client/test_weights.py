"""Real servers of one model id with equal and different weights, and a gateway between them, as processes."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.checkpoints import tiny_llama
from tests.client.processes import gateway
from tests.continuous_batching.server_process import ServerProcess

TOKENS = 1500
BODY: dict[str, Any] = {
    "model": "tiny",
    "prompt": [5, 6, 7],
    "stream": True,
    "generation_config": {"max_new_tokens": TOKENS, "ignore_eos": True},
}
NAMES = ("first", "copy", "other")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServerProcess]]:
    """Two with the same checkpoint in different directories, and one with another."""
    directory = tmp_path_factory.mktemp("servers")
    running: dict[str, ServerProcess] = {}
    try:
        for name in NAMES:
            (directory / name).mkdir()
            model = directory / name / "model"
            if name == "copy":
                shutil.copytree(directory / "first" / "model", model)
            else:
                model.mkdir()
                tiny_llama(model, seed=NAMES.index(name))
            running[name] = ServerProcess(directory / name, model)
        yield running
    finally:
        for server in running.values():
            server.process.kill()
            server.process.wait()


HELD = BODY | {
    "generation_config": {
        "max_new_tokens": TOKENS,
        "do_sample": True,
        "seed": 3,
        "structured_outputs": {"regex": "([a-z]+-[0-9]{2} ){3000}"},
    }
}
"""The same, held to a form that no answer comes to the end of."""


async def stream(
    session: aiohttp.ClientSession,
    url: str = "",
    body: dict[str, Any] = BODY,
    begun: asyncio.Event | None = None,
) -> bytes:
    async with session.post(f"{url}/completion/v2", json=body) as response:
        assert response.status == 200
        first = await response.content.readany()
        if begun is not None:
            begun.set()
        return first + await response.read()


async def busy_server(session: aiohttp.ClientSession, servers: dict[str, ServerProcess]) -> str | None:
    """The server that the gateway has a request at."""
    async with session.get("/status") as response:
        replicas = (await response.json())["replicas"]
    busy = {replica["url"] for replica in replicas if replica["requests_in_flight"]}
    return next((name for name, server in servers.items() if server.url in busy), None)


async def stopped_within(
    session: aiohttp.ClientSession, servers: dict[str, ServerProcess], begun: asyncio.Event
) -> str | None:
    """The server that was stopped while it answered; None if its answer was whole before it stopped."""
    await begun.wait()  # before its first bytes have come, a request may go to any other server
    if (name := await busy_server(session, servers)) is None:
        return None
    servers[name].process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(1)  # what is on its way may still arrive
    if await busy_server(session, servers) == name:
        return name
    servers[name].process.send_signal(signal.SIGCONT)
    return None


async def cut(
    directory: Path,
    servers: dict[str, ServerProcess],
    body: dict[str, Any] = BODY,
) -> tuple[str, bytes, list[bool]]:
    """What a client gets of a stream whose server is killed within it, behind a gateway that does not wait
    for it to come back; (its name, the bytes, what the gateway says of the weights)."""
    urls = [server.url for server in servers.values()]
    async with gateway(directory, urls, stream_wait_seconds=0.1, replica_wait_seconds=0.1) as (_, session):
        differ: list[bool] = []
        async with asyncio.timeout(20):
            while len(differ) < len(servers) or None in differ:
                async with session.get("/status") as response:
                    replicas = (await response.json())["replicas"]
                differ = [r["other_weights"] if r["state"] == "ready" else None for r in replicas]
        for _ in range(10):
            begun = asyncio.Event()
            request = asyncio.create_task(stream(session, body=body, begun=begun))
            async with asyncio.timeout(20):
                name = await stopped_within(session, servers, begun)
            if name is not None:
                servers[name].process.kill()
                return name, await request, differ
            await request
        raise AssertionError("ten answers were whole before their server could be killed")


async def test_streams_go_on_with_the_same_weights_alone(
    servers: dict[str, ServerProcess], tmp_path: Path
) -> None:
    async with aiohttp.ClientSession() as direct:
        await asyncio.gather(*(server.ready(direct) for server in servers.values()))
        told = {name: await server.status(direct) for name, server in servers.items()}
        assert told["first"]["fingerprint"] == told["copy"]["fingerprint"] != told["other"]["fingerprint"]
        routes = ["/completion/v2", "/v1/completions", "/v1/chat/completions"]
        assert set(told["first"]["accepts"]["routes"]) >= set(routes)
        expected = {name: await stream(direct, server.url) for name, server in servers.items()}
        assert expected["first"] == expected["copy"] != expected["other"]
        held = await stream(direct, servers["first"].url, HELD)

        equal = {name: servers[name] for name in ("first", "copy")}
        killed, answer, differ = await cut(tmp_path, equal, HELD)
        assert answer == held and differ == [False, False], "where it stands in its form follows from tokens"

        different = {name: server for name, server in servers.items() if name != killed}
        killed, answer, differ = await cut(tmp_path, different)
        *whole, error, end = answer.split(b"\n\n")
        assert error.startswith(b"event: error\n") and end == b"" and differ == [True, True]
        assert whole == expected[killed].split(b"\n\n")[: len(whole)], "a byte of other weights"
