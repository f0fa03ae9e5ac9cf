"""The server's own ``/completion/v2``: ``.venv/bin/python -m benchmarks.gpu.over_http SHAPE HTTP OUT.json``.

Starts the server app on a checkpoint with random weights, sends all requests of a workload at once and
then the same requests through `LLM` in this process. HTTP asks for whole answers, STREAM for streams. The
client does next to nothing: requests are made before, and answers are looked at after the clock runs.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import orjson

from benchmarks.checkpoints import SHAPES, describe_llama
from benchmarks.gpu import own, timing
from benchmarks.gpu.workloads import Workload
from benchmarks.http_cost import client
from benchmarks.ports import free_port
from benchmarks.processes import ROOT, running, wait_until_ready

_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":(\d+)')


def save_checkpoint(shape: str, directory: Path) -> Path:
    """A checkpoint of that shape with random weights, made on the GPU."""
    import torch
    from safetensors.torch import save_file

    from server.models.config import ModelConfig
    from server.models.decoder import Decoder

    path = directory / shape
    path.mkdir(parents=True, exist_ok=True)
    describe_llama(path, SHAPES[shape])
    model = Decoder(ModelConfig.load(path).spec, torch.bfloat16, torch.device("cuda"))
    own.random_weights(path, model)
    tensors = {name: target.tensor.contiguous().cpu() for name, target in model.weights().items()}
    save_file(tensors, path / "model.safetensors")
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


def requests(load: Workload, *, stream: bool) -> list[bytes]:
    """What is sent for a workload, made before the clock runs."""
    made = []
    for index, (prompt, new_tokens) in enumerate(zip(load.prompts, load.new_tokens, strict=True)):
        options = {
            "max_new_tokens": new_tokens,
            "ignore_eos": True,
            "do_sample": load.temperature > 0.0,
            "temperature": load.temperature or 1.0,
            "seed": index,
        }
        body = {"model": "m", "prompt": prompt, "stream": stream, "generation_config": options}
        made.append(client.request("/completion/v2", orjson.dumps(body)))
    return made


def run(port: int, load: Workload, *, stream: bool) -> float:
    """Seconds that the workload takes over HTTP, every request on a connection of its own."""
    seconds, answers = client.exchange(port, requests(load, stream=stream))
    for answer, expected in zip(answers, load.new_tokens, strict=True):
        told = [int(count) for count in _COMPLETION_TOKENS.findall(answer)]
        assert told == [expected], f"{told} tokens, {expected} were asked for"
    return seconds


class Served(NamedTuple):
    """A server that is ready.

    Attributes:
        start: what it took, and each phase of its engine's start, in seconds.
    """

    port: int
    start: dict[str, Any]


@contextmanager
def served(path: Path) -> Iterator[Served]:
    """The server app on the checkpoint at `path`."""
    config, log, port = path / "server.json", path / "server.log", free_port()
    config.write_text(json.dumps(configuration(path)))
    app, url = ROOT / "continuous_batching_server_app.py", f"http://127.0.0.1:{port}"
    command: list[str | Path] = [sys.executable, app, "--port", str(port), "--model_id", "m"]
    with running([*command, "--server_config_file_path", config], log) as server:
        seconds = wait_until_ready("the server", url, server, log)
        with urlopen(f"{url}/status") as status:
            phases = json.load(status)["details"]["engine_start"]["seconds"]
        yield Served(port, {"start_seconds": seconds, "engine_start_seconds": phases})


def main() -> None:
    """Time the workloads over HTTP and without, and write the figures as JSON."""
    arguments = timing.parser(__doc__, "/tmp/http-models").parse_args()
    path = save_checkpoint(arguments.shape, arguments.models)
    with served(path) as server:
        over_http = {
            name: timing.repeat(partial(run, server.port, stream=name == "STREAM"), name, arguments.repeats)
            for name in arguments.workloads
        }
    result: dict[str, Any] = {"engine": "own, over HTTP", "shape": arguments.shape, **server.start}
    result["workloads"] = {}
    llm = own.load(arguments.shape, arguments.models)
    for name, seconds in over_http.items():
        offline = timing.repeat(lambda work: own.run(llm, work), name, arguments.repeats)
        share = statistics.median(offline) / statistics.median(seconds)
        timing.note(result, name, seconds, arguments.out, offline_seconds=offline, share_of_offline=share)


if __name__ == "__main__":
    main()
