"""Microseconds of the HTTP process for each streamed token, and for each request:

    .venv/bin/python -m benchmarks.http_cost

Streams are read while an engine that computes nothing gives each of them a token a step. Processor time is
that of the server process alone, threads and system calls included, from when all streams have begun until
the first ends; for a request, from the first to the last of many whole answers of one token.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.checkpoints import SHAPES, describe_llama
from benchmarks.http_cost import client, engine
from benchmarks.machine import processor, today
from benchmarks.ports import free_port
from benchmarks.processes import running, wait_until_ready
from utils.commands import with_interpreter

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions", "native": "/completion/v2"}


def body(api: str, prompt: list[int], tokens: int, *, stream: bool) -> bytes:
    """A request for `tokens` tokens."""
    made: dict[str, Any] = {"model": "m", "stream": stream}
    if api == "native":
        made |= {"prompt": prompt, "generation_config": {"max_new_tokens": tokens, "ignore_eos": True}}
    elif api == "completions":
        made |= {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "seed": 1}
    else:
        text = "".join(chr(97 + token % 26) for token in prompt)
        made |= {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "ignore_eos": True}
    return orjson.dumps(made)


def cpu_seconds(pid: int) -> np.ndarray:
    """Seconds that the process has computed, and that the system has for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return np.array([int(fields[11]), int(fields[12])]) / os.sysconf("SC_CLK_TCK")


def parts(seconds: np.ndarray, of: str) -> dict[str, float]:
    """Microseconds of a token or a request, apart for the process and the system, which sends it."""
    own, system = (1e6 * seconds).tolist()
    return {f"microseconds_of_{of}": own, f"microseconds_of_{of}_in_system": system}


def measure(arguments: argparse.Namespace, model: Path, directory: Path) -> dict[str, Any]:
    """Start a server, and read streams of each API from it."""
    port, streams = free_port(), arguments.streams
    settings = {engine.STREAMS: str(streams), engine.STEPS_PER_SECOND: str(arguments.steps_per_second)}
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.http_cost.serve", model, str(port)]
    if arguments.profile is not None:
        command.append(arguments.profile.resolve())
    found: dict[str, Any] = {}
    log = directory / "server.log"
    with running(command, log, settings) as server:
        wait_until_ready("the server", f"http://127.0.0.1:{port}", server, log)
        prompt = [68 + index % 20 for index in range(arguments.prompt)]
        for api in arguments.apis:
            content = body(api, prompt, arguments.steps, stream=True)
            requests = [client.request(PATHS[api], content)] * streams
            seen = client.read_streams(port, requests, lambda: cpu_seconds(server.pid))
            found[api] = {
                "tokens": seen.events,
                "tokens_per_second": seen.events / seen.seconds,
                "cores": seen.cpu_seconds.sum() / seen.seconds,
                **parts(seen.cpu_seconds / seen.events, "token"),
            }
            content = client.request(PATHS[api], body(api, prompt, 1, stream=False))
            before = cpu_seconds(server.pid)
            for _ in range(arguments.rounds):
                client.exchange(port, [content] * streams)
            spent = cpu_seconds(server.pid) - before
            found[api] |= parts(spent / (streams * arguments.rounds), "request")
            print(api, {name: round(value, 2) for name, value in found[api].items()}, flush=True)
    return found


def main() -> None:
    """Measure, print and write what was found."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200, help="tokens of each stream")
    parser.add_argument("--steps_per_second", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=4, help="times that whole answers are asked for")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of each prompt")
    parser.add_argument("--apis", type=lambda names: names.split(","), default=list(PATHS))
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write cProfile's figures of the server")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "model"
        describe_llama(model, SHAPES["125m"])
        (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
        found = measure(arguments, model, Path(directory))
    if arguments.output is not None:
        arguments.output.write_text(
            json.dumps({"date": today(), "processor": processor(), "apis": found}, indent=1)
        )


if __name__ == "__main__":
    main()
