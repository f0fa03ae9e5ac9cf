"""Where the time of a first token goes:

    .venv/bin/python -m benchmarks.first_token 8b results.json
    .venv/bin/python -m benchmarks.first_token 125m results.json --device cpu --requests 10

A server with random weights gets requests one at a time, at random moments, on an idle engine and beside
streams that decode. Every process notes when a request reaches a stage (`stamps.STAGES`); printed are the
medians of the milliseconds between stages. On a GPU each is measured as served, with steps planned as early
as can be, and with the kernels of prompts launched one by one (`batcher_config.prompt_graphs`: false).
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from benchmarks.checkpoints import SHAPES, describe_llama, word_tokenizer
from benchmarks.first_token.stamps import DIRECTORY, PLAN_AT_ONCE, PREFIX, STAGES, read_device, read_stamps
from benchmarks.http_cost.client import EVENT, request
from benchmarks.machine import processor, today
from benchmarks.ports import free_port
from benchmarks.processes import running, wait_until_ready
from protocol import routes
from utils.commands import with_interpreter
from utils.readiness import get_json

PATH = "/v1/completions"
AS_SERVED, AT_ONCE, LAUNCHED = WAYS = ("as served", "planned at once", "launched")
_PAUSE = (0.1, 0.3)
"""Seconds between requests: any moment of a step is as likely as another."""


def body(prompt: int, tokens: int, seed: int) -> bytes:
    """A request for `tokens` tokens behind `prompt` random ones."""
    ids = random.Random(seed).choices(range(3, 250), k=prompt)
    asked = {"model": "m", "prompt": ids, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
    return orjson.dumps({**asked, "stream": True})


def ask(port: int, content: bytes, request_id: str = "") -> tuple[float, float]:
    """Send a request and read its whole answer; when it was sent, and when its first event came."""
    sent = request(PATH, content)
    if request_id:
        sent = sent.replace(b"\r\n", f"\r\nx-request-id: {request_id}\r\n".encode(), 1)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begin, first, text = time.monotonic(), None, b""
        connection.sendall(sent)
        while data := connection.recv(2**16):
            if first is None:
                text += data
                first = time.monotonic() if EVENT in text else None
    if first is None:
        raise RuntimeError(f"the server answered: {text[:400]!r}")
    return begin, first


@contextmanager
def streams(port: int, count: int, length: int) -> Iterator[list[threading.Thread]]:
    """`count` answers of `length` tokens that are read, each by a thread, until the block ends."""
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    threads = [threading.Thread(target=_read, args=(each,), daemon=True) for each in connections]
    try:
        for number, (connection, thread) in enumerate(zip(connections, threads, strict=True)):
            connection.sendall(request(PATH, body(8, length, number)))
            thread.start()
        yield threads
    finally:
        for connection in connections:
            with suppress(OSError):  # its answer has ended
                connection.shutdown(socket.SHUT_RDWR)  # which cancels the answer
            connection.close()


def _read(connection: socket.socket) -> None:
    with suppress(OSError):
        while connection.recv(2**16):
            pass


def probe(port: int, arguments: argparse.Namespace, name: str, beside: int) -> dict[str, tuple[float, float]]:
    """Times at the client of each request, sent while `beside` others decode."""
    chance = random.Random(name)
    found = {}
    with streams(port, beside, SHAPES[arguments.shape].max_length - 8) as others:
        time.sleep(1.0 if beside else 0.0)
        for number in range(arguments.requests):
            time.sleep(chance.uniform(*_PAUSE))
            if not all(thread.is_alive() for thread in others):
                raise RuntimeError("the streams beside ended too soon: ask for fewer --requests")
            request_id = f"{PREFIX}{name}-{number}"
            content = body(chance.randint(*arguments.prompt), 2, number)
            found[request_id] = ask(port, content, request_id)
    return found


def stages(stamps: dict[str, dict[str, float]], seen: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Median milliseconds of each stage, and of all together."""
    gaps: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for request_id, (begin, first) in seen.items():
        last, at = begin, {**stamps[request_id], "seen": first}
        for stage in STAGES:
            gaps[stage].append(1e3 * (at[stage] - last))
            last = at[stage]
    totals = [1e3 * (first - begin) for begin, first in seen.values()]
    cuts = statistics.quantiles(totals, n=20)
    told = {stage: round(statistics.median(values), 3) for stage, values in gaps.items()}
    return {"stages": told, "p50": round(cuts[9], 3), "p95": round(cuts[18], 3)}


def configuration(arguments: argparse.Namespace, model: Path, way: str) -> dict[str, Any]:
    """The server's, as for the comparison with vLLM."""
    dtype = "float32" if arguments.device == "cpu" else "bfloat16"
    return {
        "model_loading_config": {
            "model_name_or_path": str(model),
            "torch_dtype": dtype,
            "device": arguments.device,
        },
        "batcher_config": {
            "batch_max_tokens": 8192,
            "batch_max_beams": 256,
            "prompt_graphs": False if way == LAUNCHED else None,
        },
        "cache_config": {"num_blocks_cpu": 0, "enable_prefix_cache": False},
    }


def measure(arguments: argparse.Namespace, model: Path, directory: Path, way: str) -> dict[str, Any]:
    """Start a server and time requests alone and beside others."""
    directory.mkdir()
    config, log, port = directory / "server.json", directory / "server.log", free_port()
    config.write_text(json.dumps(configuration(arguments, model, way)))
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.first_token.serve", config, str(port)]
    settings = {DIRECTORY: str(directory)} | ({PLAN_AT_ONCE: "1"} if way == AT_ONCE else {})
    seen: dict[str, dict[str, tuple[float, float]]] = {}
    url = f"http://127.0.0.1:{port}"
    with running(command, log, settings) as server:
        start = wait_until_ready("the server", url, server, log)
        phases = get_json(url, routes.STATUS)[1]["details"]["engine_start"]
        for number in range(6):  # libraries allocate, estimates settle
            ask(port, body(arguments.prompt[0], 4, number))
        for beside in arguments.beside:
            seen[str(beside)] = probe(port, arguments, f"beside-{beside}", beside)
    stamps, device = read_stamps(directory), read_device(directory)
    cases = {f"beside {beside}": stages(stamps, requests) for beside, requests in seen.items()}
    return {"start_seconds": start, "engine_start": phases, "cases": cases, "device_ms": device}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Stages as lines, cases as columns."""
    cases = {
        f"{beside}, {way}": one for way, all_of in found.items() for beside, one in all_of["cases"].items()
    }
    rows = {what: [one["stages"][stage] for one in cases.values()] for stage, what in STAGES.items()}
    rows |= {f"all, {figure}": [one[figure] for one in cases.values()] for figure in ("p50", "p95")}
    lines = [f"{'ms':<42}" + "".join(f"{case:>26}" for case in cases)]
    lines += [f"{what:<42}" + "".join(f"{value:>26.2f}" for value in row) for what, row in rows.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write what was found."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--beside", type=int, nargs="*", default=[0, 4], help="streams that decode meanwhile")
    parser.add_argument("--ways", nargs="*", choices=WAYS, help="which servers to measure")
    parser.add_argument("--prompt", type=int, nargs=2, default=[256, 1024], metavar=("LEAST", "MOST"))
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "model"
        shape = SHAPES[arguments.shape]
        words = word_tokenizer(Path(place) / "tokenizer.json", shape.vocab)
        describe_llama(model, shape, tokenizer=words)
        for way in arguments.ways or ([AS_SERVED] if arguments.device == "cpu" else WAYS):
            directory = Path(place) / way.replace(" ", "-")
            found[way] = measure(arguments, model, directory, way)
            about = {"date": today(), "processor": processor(), "shape": arguments.shape}
            arguments.output.write_text(json.dumps({**about, "servers": found}, indent=1))
    print(table(found))
    first = next(iter(found.values()))
    timed = first["device_ms"]
    shown = ", ".join(f"{tokens}: {ms:.1f}" for tokens, ms in timed[:: max(1, len(timed) // 12)])
    print("the device took (tokens of prompts: ms)", shown)
    print("start:", json.dumps(first["engine_start"]))


if __name__ == "__main__":
    main()
