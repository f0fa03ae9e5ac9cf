"""C1 as clients see it: streamed over HTTP from the server, and through the gateway, on the same processors.

    .venv/bin/python -m benchmarks.cpu.served

The engine alone, the server and the gateway take turns on one checkpoint; ``served.json`` has the output
tokens a second of each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.checkpoints import SHAPES, make_llama
from benchmarks.comparison.servers import MODEL_ID, Server, started
from benchmarks.cpu.engines import ENGINES
from benchmarks.cpu.peer import Peer
from benchmarks.cpu.workloads import Request, figure, requests
from benchmarks.ports import free_port
from benchmarks.processes import ROOT, running, wait_until_ready
from utils.commands import command, with_interpreter

_WORKLOAD = "C1"
_PAUSE_SECONDS = 1.0
_START_SECONDS = 60.0


@contextmanager
def started_gateway(server: str, directory: Path) -> Iterator[str]:
    """Run the gateway in front of `server`; yields its URL once it routes."""
    config = directory / "client_config.json"
    config.write_text(json.dumps({"continuous_batching_server_urls": [server]}))
    log, port = directory / "gateway.log", free_port()
    command = [sys.executable, ROOT / "client_app.py", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with running([*command, "--client_config_file_path", config], log) as process:
        wait_until_ready("the gateway", url, process, log, _START_SECONDS)
        yield url


async def time_served(url: str, work: list[Request], *, streams: bool = True) -> float:
    """Seconds until the last of all requests, sent at once, has its last token, streamed or whole."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector) as session:
        begin = time.perf_counter()
        ask = _stream if streams else _whole
        counts = await asyncio.gather(*(ask(session, prompt, new) for prompt, new in work))
        seconds = time.perf_counter() - begin
    if counts != [new for _, new in work]:
        raise RuntimeError(f"{counts} tokens were generated, not {[new for _, new in work]}")
    return seconds


def _body(prompt: list[int], new: int) -> dict[str, Any]:
    return {"model": MODEL_ID, "prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True}


async def _whole(session: aiohttp.ClientSession, prompt: list[int], new: int) -> int:
    """Tokens that the answer reports."""
    async with session.post("/v1/completions", json=_body(prompt, new)) as response:
        response.raise_for_status()
        return int((await response.json())["usage"]["completion_tokens"])


async def _stream(session: aiohttp.ClientSession, prompt: list[int], new: int) -> int:
    """Tokens that the last event of the answer reports."""
    body = _body(prompt, new) | {"stream": True, "stream_options": {"include_usage": True}}
    tokens = -1
    async with session.post("/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {") and (usage := json.loads(line[6:]).get("usage")):
                tokens = usage["completion_tokens"]
    return tokens


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), prog=command("-m", "benchmarks.cpu.served")
    )
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "cpu-engines")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "local" / "cpu")
    options = parser.parse_args()
    model = make_llama(options.environments / f"llama-{options.shape}", SHAPES[options.shape])
    figures: dict[str, list[float]] = {"engine": [], "server": [], "gateway": []}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = {
            "model_loading_config": {
                "model_name_or_path": str(model),
                "torch_dtype": "bfloat16",
                "device": "cpu",
            },
            "cache_config": {"enable_prefix_cache": False},
        }
        app = Server("continuous batching", "continuous_batching_server_app.py", config, "v2", True)
        server = stack.enter_context(started(app, directory))
        gateway = stack.enter_context(started_gateway(server, directory))
        peer = Peer(ENGINES["own"], model, options.environments, options.threads)
        stack.callback(peer.close)
        for repetition in range(-1, options.repetitions):  # the first one warms up
            work = requests(_WORKLOAD, repetition)
            for name, values in figures.items():
                time.sleep(_PAUSE_SECONDS)
                url = gateway if name == "gateway" else server
                offline = name == "engine"
                seconds = peer.time(_WORKLOAD, repetition) if offline else asyncio.run(time_served(url, work))
                if repetition >= 0:
                    values.append(figure(_WORKLOAD, seconds, 0.0))
    medians = {name: statistics.median(values) for name, values in figures.items()}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "served.json").write_text(
        json.dumps({"shape": options.shape, "C1": figures}, indent=1) + "\n"
    )
    for name, median in medians.items():
        print(f"{name}: {median:,.0f} output tok/s, {median / medians['engine']:.0%} of the engine alone")


if __name__ == "__main__":
    main()
