"""An engine behind its own HTTP server, asked at given rates:

    .venv/bin/python -m benchmarks.gpu.served SHAPE AT4,AT12 OUT.json
    .venv/bin/python -m benchmarks.gpu.served SHAPE AT4,AT12 OUT.json --engine vllm

ATn is n requests a second, Poisson arrivals, prompts of 256 to 1,024 tokens and answers of 64 to 384
(uniform), greedy, streamed by ``/v1/completions``, prefix cache on; weights are made up. Figures are those of
`benchmarks.loadgen.measures`, in milliseconds.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.checkpoints import SHAPES, describe_llama, word_tokenizer
from benchmarks.gpu import timing
from benchmarks.loadgen.arrivals import parse_arrivals
from benchmarks.loadgen.endpoint import Endpoint
from benchmarks.loadgen.measures import parse_objective
from benchmarks.loadgen.repeats import WARM_UP_SEED, measure
from benchmarks.loadgen.traffic import parse_traffic
from benchmarks.ports import free_port
from benchmarks.processes import running, wait_until_ready
from protocol import routes
from utils.readiness import get_json

FIGURES = ("ttft", "itl", "tpot")
PERCENTILES = ("p50", "p95", "p99")
WARM_UP = 12
"""Requests that are not measured."""


def model(shape: str, directory: Path) -> Path:
    """Configuration and a tokenizer in which every id has a text, so that first tokens are seen."""
    path = directory / f"{shape}-served"
    path.mkdir(parents=True, exist_ok=True)
    sizes = SHAPES[shape]
    describe_llama(path, sizes, tokenizer=word_tokenizer(directory / f"{shape}.tokenizer.json", sizes.vocab))
    return path


def own_server(path: Path, port: int, options: dict[str, Any]) -> list[str | Path]:
    """The command of this project's server.

    Args:
        options: keys of `batcher_config`.
    """
    config = path / "server.json"
    sizes = {"batch_max_beams": 256, "batch_max_tokens": 8192, "max_waiting": 4096}
    config.write_text(
        json.dumps(
            {
                "model_loading_config": {
                    "model_name_or_path": str(path), "torch_dtype": "bfloat16", "model_max_length": 4096,
                },
                "batcher_config": {**sizes, **options},
                "cache_config": {"num_blocks_cpu": 0},
            }
        )
    )  # fmt: skip
    return [sys.executable, "-m", "benchmarks.gpu.made_up_weights", config, str(port)]


def vllm_server(path: Path, port: int) -> list[str | Path]:
    """The command of vLLM's, with its defaults."""
    sizes = ["--max-model-len", "4096", "--gpu-memory-utilization", "0.85", "--load-format", "dummy"]
    place = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "m"]
    module: list[str | Path] = ["-m", "vllm.entrypoints.openai.api_server", "--model", path]
    return [sys.executable, *module, *place, *sizes, "--no-enable-log-requests"]


def is_ready(url: str) -> bool:
    """Whether the server of either engine takes requests; both say so by ``/health``, ours by ``/ready``."""
    try:
        code = get_json(url, routes.READY)[0]
        return (get_json(url, routes.HEALTH)[0] if code == 404 else code) == 200
    except OSError:
        return False


def ask(url: str, rate: float, seconds: float, most: int) -> dict[str, Any]:
    """Requests at `rate` for some `seconds`, `most` at most, and what became of them."""
    traffic = parse_traffic("equal", prompt="uniform:256:1024", answer="uniform:64:384")
    seed = int(rate)  # no rate finds the prompts of another in the prefix cache
    requests = traffic.requests(min(max(60, int(rate * seconds)), most), seed)
    result = uvloop.run(
        measure(
            Endpoint("served", url, "m"),
            [requests],
            parse_arrivals(f"poisson:{rate:g}"),
            parse_objective(""),
            traffic=traffic.name,
            warm_up=traffic.requests(WARM_UP, WARM_UP_SEED),
            progress=False,
        )
    )
    (run,) = result.runs
    found: dict[str, Any] = {
        f"{name}_ms": {percentile: 1e3 * getattr(run, name)[percentile] for percentile in PERCENTILES}
        for name in FIGURES
    }
    return {
        **found,
        "requests_per_second": run.requests_per_second,
        "output_tokens_per_second": run.tokens_per_second,
        "requests": run.requests,
        "failed": sum(run.errors.values()),
        "client_lag_ms": 1e3 * result.client_lags[0],
    }


def main() -> None:
    """Serve, ask at each rate, and write the figures as JSON."""
    parser = timing.parser(__doc__)
    parser.add_argument("--engine", choices=["own", "vllm"], default="own")
    parser.add_argument("--seconds", type=float, default=14.0, help="of arrivals at each rate")
    parser.add_argument("--requests", type=int, default=1_000, help="most at each rate")
    parser.add_argument("--batcher", type=json.loads, default={}, help="JSON: further keys of batcher_config")
    arguments = parser.parse_args()
    path, port = model(arguments.shape, arguments.models), free_port()
    own = arguments.engine == "own"
    command = own_server(path, port, arguments.batcher) if own else vllm_server(path, port)
    url, log = f"http://127.0.0.1:{port}", path / f"{arguments.engine}.log"
    with ExitStack() as stack:
        server = stack.enter_context(running(command, log))
        start = wait_until_ready("the server", url, server, log, is_ready=is_ready)
        engine = "own, served" if own else "vllm, served"
        result: dict[str, Any] = {"engine": engine, "shape": arguments.shape, "start_seconds": start}
        result |= {"batcher": arguments.batcher, "cores": os.cpu_count(), "workloads": {}, "served": {}}
        for name in arguments.workloads:
            found = ask(url, float(name.removeprefix("AT")), arguments.seconds, arguments.requests)
            result["served"][name] = found
            timing.write(result, name, found, arguments.out)


if __name__ == "__main__":
    main()
