"""Requests to a continuous-batching server that runs as a process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp

from tests.continuous_batching.server_process import ServerProcess


async def post(
    session: aiohttp.ClientSession, server: ServerProcess, prompt: Any, **config: Any
) -> tuple[int, Any]:
    """(status, body) of a native completion."""
    body = {"model": "tiny", "prompt": prompt, "generation_config": config, "return_token_ids": True}
    async with session.post(f"{server.url}/completion/v2", json=body) as response:
        return response.status, await response.json()


async def stream(
    session: aiohttp.ClientSession, server: ServerProcess, body: dict[str, Any]
) -> tuple[list[dict[str, Any]], bytes]:
    """(events, raw bytes) of a native stream."""
    headers = {"x-stream-checkpoint": "1"}
    payload = {"model": "tiny", "stream": True, **body}
    async with session.post(f"{server.url}/completion/v2", json=payload, headers=headers) as response:
        assert response.status == 200, await response.text()
        raw = await response.read()
    lines = [line[6:] for line in raw.decode().split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]], raw


def joined(events: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(c["text"] for event in events for c in event["choices"] if c["index"] == index)


async def until(
    session: aiohttp.ClientSession, server: ServerProcess, holds: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The first status of which `holds` is true."""
    async with asyncio.timeout(20):
        while True:
            status = await server.status(session)
            if holds(status):
                return status
            await asyncio.sleep(0.01)


def is_idle(status: dict[str, Any]) -> bool:
    load = status["load"]
    return not (load["running"] or load["waiting"] or load["swapped"] or load["kv_cache_usage"])
