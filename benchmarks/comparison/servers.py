"""Starts the servers that are compared, each as users run it, on a port of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.readiness import health

ROOT = Path(__file__).resolve().parents[2]
MODEL_ID = "benchmark"


class StartError(Exception):
    """A server that did not start; the message ends with what it logged last."""


def continuous_config(model: str, dtype: str, beams: int, device: str) -> dict[str, Any]:
    """`cb_server_config.json` for a comparison."""
    return {
        "model_loading_config": {"model_name_or_path": model, "torch_dtype": dtype, "device": device},
        "batcher_config": {"batch_max_beams": beams},
    }


def static_config(model: str, dtype: str, beams: int, device: str) -> dict[str, Any]:
    """`sb_server_config.json` for a comparison: packages as large as the other server's batch."""
    return {
        "batcher_config": {"package_max_workload": beams, "packaging_interval_seconds": 0.05},
        "worker_config": {"model_name_or_path": model, "torch_dtype": dtype, "device": device},
    }


@contextmanager
def started(app: str, config: dict[str, Any], directory: Path, timeout: float = 900.0) -> Iterator[str]:
    """Run `app` (a script of this repository) with `config`; yields its URL once it is ready.

    Args:
        app: name of the script.
        config: written to a file in `directory`, beside the server's log.

    Raises:
        StartError: it ended, or was not ready in time.
    """
    path = directory / f"{Path(app).stem}.json"
    path.write_text(json.dumps(config, indent=1))
    log = directory / f"{Path(app).stem}.log"
    port = _free_port()
    command = [sys.executable, str(ROOT / app), "--port", str(port), "--model_id", MODEL_ID]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--server_config_file_path", str(path)],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, app, log, timeout)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, app: str, log: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    with tqdm(desc=f"starting {app}", bar_format="{desc}: {elapsed}", leave=False) as bar:
        while not health(url).ready:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
                raise StartError(f"{app} did not start:\n{tail}")
            time.sleep(0.2)
            bar.update()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
