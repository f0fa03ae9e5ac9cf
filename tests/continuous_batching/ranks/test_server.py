"""A server whose model is split: what is hurt comes back as a whole, and answers as before."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.client.processes import complete, gateway
from tests.continuous_batching.server_calls import post
from tests.continuous_batching.server_process import ServerProcess

PROMPTS = [[5 + 3 * i, 6, 7 + i] for i in range(12)]
HURTS = [(1, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGKILL), (0, signal.SIGSTOP)]


def exists(pid: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def ranks_of(http: aiohttp.ClientSession, server: ServerProcess) -> dict[str, Any]:
    status = await server.status(http)
    found: dict[str, Any] = status["capabilities"]["ranks"]
    return found


@pytest.mark.slow
async def test_every_rank_that_is_lost_comes_back(tiny_model: Path, tmp_path: Path) -> None:
    server = ServerProcess(
        tmp_path, tiny_model, parallel_config={"tensor_parallel_size": 2}, cache_config={"num_blocks": 300}
    )

    async def ask(prompt: list[int]) -> Any:
        """An answer, asked for again while the server says that it has no engine."""
        while True:
            status, body = await post(http, server, prompt, max_new_tokens=300, ignore_eos=True)
            if status == 200:
                return body["choices"][0]["token_ids"]
            assert status == 503, body
            await asyncio.sleep(0.2)

    try:
        async with aiohttp.ClientSession() as http:
            await server.ready(http)
            expected = [await ask(prompt) for prompt in PROMPTS]
            for rank, how in HURTS:
                pids = (await ranks_of(http, server))["pids"]
                asked = [asyncio.create_task(ask(prompt)) for prompt in PROMPTS * 4]
                await asyncio.sleep(0.2)
                assert not any(task.done() for task in asked)
                os.kill(pids[rank], how)
                assert await asyncio.wait_for(asyncio.gather(*asked), 90) == expected * 4, (rank, how)
                assert not any(map(exists, pids)), f"{rank} {how}"
                assert (await server.status(http))["details"]["engine_restarts"] > 0
    finally:
        server.stop()


@pytest.mark.slow
async def test_nothing_is_lost_behind_a_gateway(tiny_model: Path, tmp_path: Path) -> None:
    """200 requests, streams among them; another server has the same model, in one piece."""
    servers = []
    for ranks in (2, 1):
        (directory := tmp_path / str(ranks)).mkdir()
        parallel = {"tensor_parallel_size": ranks}
        servers.append(ServerProcess(directory, tiny_model, model_id="m", parallel_config=parallel))

    async def ask(session: aiohttp.ClientSession, number: int) -> tuple[int, str]:
        async with limit:
            return await complete(session, f"request {number % 20}", 100, bool(number % 2))

    limit = asyncio.Semaphore(16)
    try:
        async with aiohttp.ClientSession() as http:
            for server in servers:
                await server.ready(http)
            urls = [server.url for server in servers]
            async with gateway(tmp_path, urls, replica_wait_seconds=60) as (_, session):
                expected = [await ask(session, number) for number in range(40)]
                for rank, how in HURTS[:3]:
                    pids = (await ranks_of(http, servers[0]))["pids"]
                    asked = [asyncio.create_task(ask(session, number)) for number in range(200)]
                    await asyncio.sleep(0.5)
                    assert sum(task.done() for task in asked) < 150
                    os.kill(pids[rank], how)
                    assert await asyncio.gather(*asked) == expected * 5, (rank, how)
                    await servers[0].ready(http)
    finally:
        for server in servers:
            server.stop()
