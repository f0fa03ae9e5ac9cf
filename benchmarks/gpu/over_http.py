"""The server's own ``/completion/v2``: ``python -m benchmarks.gpu.over_http SHAPE W1 OUT.json``.

Starts the server app on a checkpoint with random weights, sends all requests of a workload at once and
then the same requests through `LLM` in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.checkpoints import SHAPES, describe_llama
from benchmarks.gpu import own
from benchmarks.gpu.workloads import Workload, figures, workload


def save_checkpoint(shape: str, directory: Path) -> Path:
    """A checkpoint of that shape with random weights, made on the GPU."""
    import torch
    from safetensors.torch import save_file

    from server.continuous_batching.models.config import DecoderConfig
    from server.continuous_batching.models.decoder import Decoder

    path = directory / shape
    path.mkdir(parents=True, exist_ok=True)
    describe_llama(path, SHAPES[shape])
    weights = Decoder(DecoderConfig.load(path), torch.bfloat16, torch.device("cuda")).weights()
    own.random_weights(path, weights)
    save_file(
        {name: tensor.contiguous().cpu() for name, tensor in weights.items()}, path / "model.safetensors"
    )
    return path


def configuration(path: Path) -> dict[str, Any]:
    """The server's configuration file, the same sizes as `own.load`."""
    return {
        "model_loading_config": {
            "model_name_or_path": str(path),
            "torch_dtype": "bfloat16",
            "model_max_length": 4096,
        },
        "batcher_config": {
            "batch_max_tokens": 16384,
            "batch_max_beams": 512,
            "prefill_chunk_tokens": 8192,
        },
        "cache_config": {"num_blocks_cpu": 0, "enable_prefix_cache": False},
    }


async def until_ready(url: str, server: subprocess.Popen[bytes]) -> float:
    """Seconds until the server answers that it is ready."""
    begin = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        while server.poll() is None:
            try:
                async with session.get(f"{url}/ready") as answer:
                    if answer.status == 200:
                        return time.perf_counter() - begin
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise SystemExit(f"the server ended with status {server.returncode}")


async def run(url: str, model: str, load: Workload) -> float:
    """Seconds that the workload takes over HTTP, every request on a connection of its own."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def one(index: int) -> None:
            options = {
                "max_new_tokens": load.new_tokens[index],
                "ignore_eos": True,
                "do_sample": load.temperature > 0.0,
                "temperature": load.temperature or 1.0,
                "seed": index,
            }
            body = {"model": model, "prompt": load.prompts[index], "generation_config": options}
            async with session.post(f"{url}/completion/v2", json=body) as answer:
                content = await answer.json()
                assert answer.status == 200, content
                assert content["usage"]["completion_tokens"] == load.new_tokens[index]

        begin = time.perf_counter()
        await asyncio.gather(*(one(index) for index in range(len(load.prompts))))
        return time.perf_counter() - begin


def main() -> None:
    """Time the workloads over HTTP and without, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("workloads", type=lambda names: names.split(","))
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", type=Path, default=Path("/tmp/http-models"))
    parser.add_argument("--port", type=int, default=8701)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    path = save_checkpoint(arguments.shape, arguments.models)
    config = path / "server.json"
    config.write_text(json.dumps(configuration(path)))
    app = Path(__file__).resolve().parents[2] / "continuous_batching_server_app.py"
    command = [sys.executable, str(app), "--port", str(arguments.port), "--server_config_file_path"]
    server = subprocess.Popen([*command, str(config), "--model_id", "m"])
    url = f"http://127.0.0.1:{arguments.port}"
    try:
        start, over_http = asyncio.run(measure(url, server, arguments.workloads, arguments.repeats))
    finally:
        server.terminate()
        server.wait(30)
    result: dict[str, Any] = {
        "engine": "own, over HTTP",
        "shape": arguments.shape,
        "start_seconds": start,
        "workloads": {},
    }
    llm = own.load(arguments.shape, arguments.models)
    for name, seconds in over_http.items():
        timed = workload(name)
        own.run(llm, timed.shortened(24))
        offline = [own.run(llm, timed) for _ in range(arguments.repeats)]
        median = statistics.median(seconds)
        result["workloads"][name] = {
            "seconds": seconds,
            **figures(name, timed, median),
            "offline_seconds": offline,
            "share_of_offline": statistics.median(offline) / median,
        }
        print(arguments.shape, name, result["workloads"][name], flush=True)
        arguments.out.write_text(json.dumps(result, indent=1))


async def measure(
    url: str, server: subprocess.Popen[bytes], names: list[str], repeats: int
) -> tuple[float, dict[str, list[float]]]:
    """Wait for the server, warm it up, time the workloads: (seconds to ready, seconds of each run)."""
    start = await until_ready(url, server)
    times: dict[str, list[float]] = {}
    for name in names:
        timed = workload(name)
        await run(url, "m", timed.shortened(24))
        times[name] = [await run(url, "m", timed) for _ in range(repeats)]
        print(f"{name} over HTTP: {times[name]}", flush=True)
    return start, times


if __name__ == "__main__":
    main()
