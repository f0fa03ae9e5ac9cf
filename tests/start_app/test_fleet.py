"""What `start_app.py --fleet` refuses before it starts anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import start_app
from utils.running import Directories, find

Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a fleet of one entry, on a machine that seems to have two GPUs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    lines = "GPU 0: NVIDIA H200 (UUID: GPU-11)\nGPU 1: NVIDIA H200 (UUID: GPU-22)"
    for name, text in (("nvidia-smi", f'echo "{lines}"'), ("vllm", "exit 1")):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")

    def start(config: dict[str, Any], *arguments: str, **entry: Any) -> int:
        (tmp_path / "server.json").write_text(json.dumps(config))
        servers = [{"name": "a", "config": "server.json", "port": 8001} | entry]
        (tmp_path / "fleet.json").write_text(json.dumps({"servers": servers}))
        fleet = ["--fleet", str(tmp_path / "fleet.json"), "--run_dir", str(tmp_path / "run")]
        return start_app.main([*fleet, *arguments])

    return start


def cb(**others: Any) -> dict[str, Any]:
    """A configuration of a continuous-batching server."""
    return {"model_loading_config": {"model_name_or_path": "model"}} | others


SB = {"worker_config": {"model_name_or_path": "model"}}
RAY = {"distributed_executor_backend": "ray", "ray_address": "auto"}


@pytest.mark.parametrize(
    ("config", "entry", "said"),
    [
        (cb(), {"gpus": [0, 1]}, "a: GPUs by the fleet: 2, by its configuration: 1"),
        (
            cb(parallel_config={"tensor_parallel_size": 2}),
            {"gpus": [1]},
            "a: GPUs by the fleet: 1, by its configuration: 2",
        ),
        (cb(), {"gpus": [2]}, "a: this machine has no GPU 2; it has 0, 1, GPU-11, GPU-22"),
        (cb(cach_config={}), {}, "unknown key 'cach_config'"),
        (SB, {"gpus": [0, 1], "kind": "static_batching"}, "by its configuration: 1"),
        (
            {"environment_path": ".", "model": "model"},
            {"gpus": [0, 1], "kind": "vllm"},
            "by its configuration: 1",
        ),
        ({"environment_path": ".", "model": "model"} | RAY, {"gpus": [0], "kind": "vllm"}, "Ray chooses"),
    ],
)
def test_a_server_that_does_not_fit_its_gpus_is_one_line(
    start: Start,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: dict[str, Any],
    entry: dict[str, Any],
    said: str,
) -> None:
    assert start(config, **entry) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and said in errors[0]
    assert find(Directories(tmp_path / "run")) == []


def test_a_name_that_is_not_of_the_fleet_is_one_line(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--status"], ["--stop"], ["--restart"], []):
        assert start(cb(), *arguments, "--only", "b") == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.endswith("fleet.json has no 'b'; its names: a\n")


def test_the_status_of_a_fleet_that_does_not_run(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(cb(), "--status") == 3
    assert capsys.readouterr().out == "nothing is running\n"
