"""Gateways and servers as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.ports import free_port
from tests.client.conftest import FAST
from utils.options import ClientAppOptions, to_environment

ROOT = Path(__file__).resolve().parents[2]


def foreground(options: ClientAppOptions) -> tuple[Sequence[str], dict[str, str]]:
    return (
        *(sys.executable, "client_app.py", "--port", str(options.port)),
        *("--client_config_file_path", str(options.client_config_file_path)),
    ), {}


def gunicorn(options: ClientAppOptions) -> tuple[Sequence[str], dict[str, str]]:
    return (
        *(sys.executable, "-m", "gunicorn", "client_app:create_app()"),
        *("--config", "configs/gunicorn_config.py", "--bind", f"127.0.0.1:{options.port}"),
        "--no-control-socket",
    ), to_environment(options)


def start(command: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """`command`, running at the root of the repository."""
    with log.open("ab") as output:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=output, stderr=output)


@contextmanager
def process(
    command: Sequence[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """`command` running while the block lasts."""
    running = start(command, environment, log)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@asynccontextmanager
async def gateway(
    tmp_path: Path,
    urls: Sequence[str],
    how: Any = foreground,
    patience: float = 30,
    headers: dict[str, str] | None = None,
    **config: Any,
) -> AsyncIterator[tuple[subprocess.Popen[bytes], aiohttp.ClientSession]]:
    """A gateway process in front of the servers at `urls`, ready, and a client of it."""
    path = tmp_path / "client_config.json"
    path.write_text(json.dumps(FAST | {"continuous_batching_server_urls": list(urls)} | config))
    options = ClientAppOptions(port=free_port(), client_config_file_path=path)
    command, environment = how(options)
    log = tmp_path / "log"
    url = f"http://127.0.0.1:{options.port}"
    connector = aiohttp.TCPConnector(limit=0)
    with process(command, environment, log) as running:
        async with aiohttp.ClientSession(url, connector=connector, headers=headers) as session:
            async with asyncio.timeout(patience):
                while True:
                    try:
                        async with session.get("/v1/models") as response:
                            if len((await response.json())["data"]) == min(1, len(urls)):
                                break
                    except aiohttp.ClientConnectionError:
                        assert running.poll() is None, log.read_text()
                    await asyncio.sleep(0.05)
            yield running, session
    assert "Traceback" not in log.read_text(), log.read_text()


async def complete(session: aiohttp.ClientSession, prompt: str, tokens: int, stream: bool) -> tuple[int, str]:
    """Status and text (or error) of a completion."""
    body = {"model": "m", "prompt": prompt, "generation_config": {"max_new_tokens": tokens}}
    async with session.post("/completion/v2", json=body | {"stream": stream}) as response:
        data = await response.text()
    if response.status != 200:
        return response.status, data
    if not stream:
        return 200, json.loads(data)["choices"][0]["text"]
    events = [json.loads(line[6:]) for line in data.split("\n\n") if line.startswith("data: {")]
    assert data.endswith("data: [DONE]\n\n"), data
    return 200, "".join(choice["text"] for event in events for choice in event["choices"])
