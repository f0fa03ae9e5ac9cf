"""Starts the servers that are compared, each as users run it, on a port of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.loadgen.endpoint import Api
from benchmarks.ports import free_port
from benchmarks.processes import ROOT, running, wait_until_ready

MODEL_ID = "benchmark"


@dataclass(frozen=True, slots=True)
class Server:
    """One server of a comparison.

    Attributes:
        name: as the report shows it.
        app: name of the script.
        config: content of its configuration file.
        api: what it is asked by.
        streams: whether that API streams.
    """

    name: str
    app: str
    config: dict[str, Any]
    api: Api
    streams: bool


def continuous_config(model: str, dtype: str, beams: int, device: str, policy: str) -> dict[str, Any]:
    """`cb_server_config.json` for a comparison."""
    return {
        "model_loading_config": {"model_name_or_path": model, "torch_dtype": dtype, "device": device},
        "batcher_config": {"batch_max_beams": beams, "policy": policy},
    }


def static_config(model: str, dtype: str, device: str, size: int, interval: float) -> dict[str, Any]:
    """`sb_server_config.json` for a comparison, with packages of `size` that wait for `interval` seconds."""
    return {
        "batcher_config": {"package_max_workload": size, "packaging_interval_seconds": interval},
        "worker_config": {"model_name_or_path": model, "torch_dtype": dtype, "device": device},
    }


@contextmanager
def started(server: Server, directory: Path, timeout: float = 900.0) -> Iterator[str]:
    """Run `server`; yields its URL once it is ready.

    Args:
        directory: for its configuration file and its log.

    Raises:
        StartError: it ended, or was not ready in time.
    """
    path = directory / f"{server.name}.json"
    path.write_text(json.dumps(server.config, indent=1))
    log, port = directory / f"{server.name}.log", free_port()
    command = [sys.executable, ROOT / server.app, "--port", str(port), "--model_id", MODEL_ID]
    url = f"http://127.0.0.1:{port}"
    with running([*command, "--server_config_file_path", path], log) as process:
        wait_until_ready(server.name, url, process, log, timeout)
        yield url
