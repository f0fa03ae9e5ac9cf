"""kill -9 of real servers in bfloat16: greedy and seeded streams are the undisturbed ones, bit by bit."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.checkpoints import tiny_llama
from tests.client.processes import gateway
from tests.client.test_kill import REAL, Fleet, nothing_is_held

STREAMS = 200
"""Of a part of the test; there are five."""
AT_ONCE = 48
PATIENT: Any = REAL | {"retry_ratio": 10}  # each kill cuts a third of all streams
OPENINGS = ("Once upon a time", "What is 17 plus 25?", "The old king of the North said:", "Tell me a story.")

Body = dict[str, Any]
Answer = tuple[list[int], list[float]]
"""Token ids and their log probabilities."""


def write_config(directory: Path) -> Path:
    """Of servers of random weights: their distributions are flat, so that the least rounding shows."""
    model = tiny_llama(directory / "model", hidden=256, layers=3, heads=8, kv_heads=4)
    loading = {"model_name_or_path": str(model), "torch_dtype": "bfloat16", "model_max_length": 1024}
    config = {
        "model_loading_config": loading | {"device": "cpu", "num_threads": 1, "deterministic": True},
        "batcher_config": {"batch_max_tokens": 256, "batch_max_beams": 32},
        "cache_config": {"num_blocks": 400, "num_blocks_cpu": 200},  # so small that requests have to leave
    }
    path = directory / "server.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def server_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("wide"))


def bodies(part: int) -> list[Body]:
    """Requests, every other one seeded."""
    dice, made = random.Random(part), []
    for index in range(STREAMS):
        options: Body = {"max_new_tokens": dice.randint(100, 500), "ignore_eos": True, "logprobs": 0}
        if index % 2:
            options |= {"do_sample": True, "temperature": 0.9, "seed": 1000 * part + index}
        prompt = f"{dice.choice(OPENINGS)} {index} " * dice.randint(1, 8)
        body = {"model": "m", "prompt": prompt, "generation_config": options}
        made.append(body | {"stream": True, "return_token_ids": True})
    return made


async def answers(session: aiohttp.ClientSession, asked: Sequence[Body]) -> list[Answer]:
    """What each stream brings, some of them at once."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(body: Body) -> Answer:
        async with room, session.post("/completion/v2", json=body) as response:
            data = await response.text()
        assert response.status == 200 and data.endswith("data: [DONE]\n\n"), data[-500:]
        answer: Answer = [], []
        for line in data.split("\n\n"):
            for choice in json.loads(line[6:])["choices"] if line.startswith("data: {") else ():
                answer[0].extend(choice["token_ids"] or ())
                answer[1].extend((choice["logprobs"] or {}).get("token_logprobs", ()))
        assert len(answer[0]) == len(answer[1]) == body["generation_config"]["max_new_tokens"]
        return answer

    return await asyncio.gather(*map(one, asked))


async def keep_killing(fleet: Fleet, session: aiohttp.ClientSession) -> None:
    """kill -9 one server after the other under its streams, while another one is ready."""
    while True:
        await asyncio.sleep(1)
        async with session.get("/status") as response:
            replicas = (await response.json())["replicas"]
        ready = [replica for replica in replicas if replica["state"] == "ready"]
        if len(ready) > 1:
            busiest = max(ready, key=lambda replica: int(replica["requests_in_flight"]))
            await fleet.restart(fleet.urls.index(busiest["url"]), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(5))
async def test_streams_survive_bit_by_bit(tmp_path: Path, server_config: Path, part: int) -> None:
    def server(port: int) -> Sequence[str]:
        options = "--model_id", "m", "--server_config_file_path", str(server_config)
        return sys.executable, "continuous_batching_server_app.py", "--port", str(port), *options

    fleet, asked = Fleet(server, tmp_path), bodies(part)
    with fleet.run():
        async with gateway(tmp_path, fleet.urls, patience=180, **PATIENT) as (_, session):
            expected = await answers(session, asked)
            killing = asyncio.create_task(keep_killing(fleet, session))
            disturbed = await answers(session, asked)
            assert killing.cancel()
            async with session.get("/status") as response:
                resumed = (await response.json())["requests"]["resumed_streams"]
            print(f"{fleet.kills} servers killed, {resumed} streams resumed")
            assert fleet.kills > 1 and resumed > AT_ONCE // 4, "too few were disturbed: this shows nothing"
            wrong = [i for i, pair in enumerate(zip(expected, disturbed, strict=True)) if pair[0] != pair[1]]
            assert wrong == []
            await nothing_is_held(session, 2 * len(asked))
