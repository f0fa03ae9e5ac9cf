"""Real servers and a gateway for other people's clients.

The clients live in an environment of their own (`make clients`); the stack's runs the servers and is named
by ``STACK_PYTHON``. The model calls the tool ``add`` wherever there are tools, and speaks otherwise.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("STACK_PYTHON", sys.executable)
MODEL, KEY = "tiny", "a-key"
PATIENCE = 180


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def running(name: str, config: dict[str, object], directory: Path, *arguments: str) -> Iterator[str]:
    """One of the apps in the foreground, ready; yields its URL."""
    port, path = free_port(), directory / f"{name}.json"
    path.write_text(json.dumps(config))
    option = "--client_config_file_path" if name == "client_app" else "--server_config_file_path"
    command = [PYTHON, f"{name}.py", "--port", str(port), option, str(path), *arguments]
    url = f"http://127.0.0.1:{port}"
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + PATIENCE
            while not is_ready(url):
                assert process.poll() is None, (directory / f"{name}.log").read_text()
                assert time.monotonic() < deadline, f"{name} is not ready"
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(60)


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """URLs of a gateway and both servers on one forced model, and the directory of its checkpoint."""
    directory = tmp_path_factory.mktemp("stack")
    checkpoint = directory / "checkpoint"
    subprocess.run([PYTHON, "-m", "tests.forced", str(checkpoint)], cwd=ROOT, check=True)
    loading = {"model_name_or_path": str(checkpoint), "torch_dtype": "float32"}
    cb = {"model_loading_config": loading, "cache_config": {"num_blocks": 600}}
    name = ("--model_id", MODEL)
    with (
        running("continuous_batching_server_app", cb, directory, *name) as cb_url,
        running("static_batching_server_app", {"worker_config": loading}, directory, *name) as sb_url,
        running(
            "client_app",
            {
                "continuous_batching_server_urls": [cb_url],
                "static_batching_server_urls": [sb_url],
                "api_keys": [KEY],
            },
            directory,
        ) as gateway,
    ):
        yield {
            "gateway": gateway,
            "continuous": cb_url,
            "static": sb_url,
            "checkpoint": str(checkpoint),
        }


@pytest.fixture(params=["gateway", "continuous"])
def url(stack: dict[str, str], request: pytest.FixtureRequest) -> str:
    """The gateway, then a server without one."""
    return stack[request.param]
