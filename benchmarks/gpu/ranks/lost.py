"""A rank is killed under load: ``python -m benchmarks.gpu.ranks.lost OUT.json``.

A server of the small checkpoint is asked twice; the third time rank 1 is killed (SIGKILL) while it answers,
and each request is sent again until it is answered: with the same tokens as before.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.ranks.tokens import checkpoint
from utils.commands import with_interpreter

REQUESTS = 48
NEW_TOKENS = 900
READY_SECONDS, ANSWER_SECONDS = 120.0, 120.0


class Server:
    """Started on a free port, its log beside `out`."""

    def __init__(self, out: Path, path: Path, ranks: int) -> None:
        loading = {"model_name_or_path": str(path), "torch_dtype": "float32", "model_max_length": 1024}
        config = out.with_suffix(".config.json")
        sections = {"model_loading_config": loading, "parallel_config": {"tensor_parallel_size": ranks}}
        sections["cache_config"] = {"num_blocks": 4000, "num_blocks_cpu": 0}
        sections["batcher_config"] = {"batch_max_beams": 64}
        config.write_text(json.dumps(sections))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = out.with_suffix(".log")
        options = ["--port", str(port), "--model_id", "m", "--server_config_file_path", str(config)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "continuous_batching_server_app.py", *options], stdout=log, stderr=log
            )

    def call(self, route: str, body: Any = None) -> tuple[int, Any]:
        """(status, body); status 0: no server answered."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + route, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, None
        except (OSError, ValueError):
            return 0, None

    def wait(self) -> float:
        """Seconds until it is ready."""
        begin = time.monotonic()
        while self.call("/ready")[0] != 200:
            if self.process.poll() is not None or time.monotonic() > begin + READY_SECONDS:
                raise RuntimeError(f"the server is not ready:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)
        return time.monotonic() - begin

    def ask(self, number: int) -> list[int]:
        """The tokens of an answer, asked for until there is one."""
        end = time.monotonic() + ANSWER_SECONDS
        prompt = [300 + (7 * number + i) % 900 for i in range(20 + number)]
        body = {"model": "m", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0}
        while time.monotonic() < end:
            status, answer = self.call(
                "/v1/completions", {**body, "ignore_eos": True, "return_token_ids": True}
            )
            if status == 200:
                tokens: list[int] = answer["choices"][0]["token_ids"]
                return tokens
            if status not in (0, 503):
                raise RuntimeError(f"answered with status {status}")
            time.sleep(0.2)
        raise RuntimeError(f"request {number} was not answered in {ANSWER_SECONDS} s")


def main() -> None:
    """Hurt it once."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("out", type=Path)
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count())
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    arguments = parser.parse_args()
    server = Server(arguments.out, checkpoint(arguments.models / "small"), arguments.ranks)
    try:
        with ThreadPoolExecutor(REQUESTS) as pool:
            start = server.wait()
            begin = time.monotonic()
            expected = list(pool.map(server.ask, range(REQUESTS)))
            whole = time.monotonic() - begin
            again = list(pool.map(server.ask, range(REQUESTS)))
            pids = server.call("/status")[1]["capabilities"]["ranks"]["pids"]
            asked = [pool.submit(server.ask, number) for number in range(REQUESTS)]
            time.sleep(whole / 3)
            under_way = sum(not each.done() for each in asked)
            os.kill(pids[1], signal.SIGKILL)
            begin = time.monotonic()
            found = [each.result() for each in asked]
            seconds = time.monotonic() - begin
            if not under_way:
                raise RuntimeError("nothing was under way when the rank was killed")
        result = {
            "requests": REQUESTS,
            "under_way": under_way,
            "different": sum(a != b for a, b in zip(expected, found, strict=True)),
            "different_without": sum(a != b for a, b in zip(expected, again, strict=True)),
            "seconds_without": whole,
            "start_seconds": start,
            "seconds_until_all_were_answered": seconds,
            "restarts": server.call("/status")[1]["details"]["engine_restarts"],
        }
        arguments.out.write_text(json.dumps(result, indent=1))
        print(result, flush=True)
    finally:
        server.process.terminate()
        server.process.wait(60)


if __name__ == "__main__":
    main()
