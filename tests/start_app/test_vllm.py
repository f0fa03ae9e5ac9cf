"""vLLM as a service, with a stand-in for its program: real processes, no engine."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import start_app
from benchmarks.ports import free_port
from tests.start_app import fake_vllm
from utils.process import processes, wait_until
from utils.readiness import get_json, health_of
from utils.running import Directories, Running, find

Start = Callable[..., int]


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    """A configuration, and an environment that has the stand-in."""
    program = tmp_path / "environment" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\n" + Path(fake_vllm.__file__).read_text())
    program.chmod(0o755)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    path = tmp_path / "vllm_config.json"
    config: dict[str, Any] = {
        "environment_path": "environment",
        "model": "model",
        "api_key": "secret-key",
        "arguments": {"max-model-len": 128, "enable_prefix_caching": False},
    }
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def start(vllm: Path, directories: Directories) -> Start:
    """Start it with `start_app.py`; returns the exit status."""

    def start(port: int, *arguments: str) -> int:
        return start_app.main(
            [
                *("--start_vllm_app", "--vllm_port", str(port), "--vllm_config_file_path", str(vllm)),
                *("--run_dir", str(directories.run), "--log_dir", str(directories.logs), *arguments),
            ]
        )

    return start


def running(directories: Directories) -> Running:
    (found,) = find(directories)
    return found


def group(service: Running) -> list[str]:
    """The command lines of its processes."""
    return [process.command for process in processes() if process.group == service.pid]


def test_it_is_started_looked_at_and_stopped_like_the_others(
    start: Start, vllm: Path, directories: Directories, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    assert start(port, "--vllm_model_id", "mine") == 0
    assert capsys.readouterr().out == f"vllm_app-{port} is ready at http://127.0.0.1:{port}\n"
    service = running(directories)
    assert service.log == directories.logs / f"vllm_app-{port}.log"
    given = get_json(service.url, "/given")[1]
    assert given["argv"] == [
        *("serve", str(vllm.parent / "model"), "--host", "127.0.0.1", "--port", str(port)),
        *("--served-model-name", "mine", "--tensor-parallel-size", "1", "--pipeline-parallel-size", "1"),
        *("--distributed-executor-backend", "mp", "--shutdown-timeout", "60"),
        *("--max-model-len", "128", "--no-enable-prefix-caching"),
    ]
    assert given["environment"]["VLLM_API_KEY"] == "secret-key"
    assert not any("secret-key" in command for command in group(service))
    select = ["--run_dir", str(directories.run), "--vllm_port", str(port)]
    assert start_app.main(["--status", *select]) == 0
    assert capsys.readouterr().out.split()[:2] == [f"vllm_app-{port}", "ready"]
    assert start_app.main(["--stop", *select]) == 0
    assert not service.alive() and group(service) == []
    assert "secret-key" not in service.log.read_text()


def test_a_stop_lets_its_requests_finish(start: Start, directories: Directories) -> None:
    assert start(free_port()) == 0
    service = running(directories)
    answers: list[int] = []
    caller = threading.Thread(target=lambda: answers.append(get_json(service.url, "/slow")[0]))
    caller.start()
    assert wait_until(lambda: get_json(service.url, "/anything")[1]["slow"] == 1, 30)
    assert start_app.main(["--stop", "--run_dir", str(directories.run)]) == 0
    caller.join()
    assert answers == [200]


def test_one_that_dies_starts_again_and_leaves_nothing_behind(start: Start, directories: Directories) -> None:
    assert start(free_port()) == 0
    service = running(directories)
    assert wait_until(lambda: "takes requests" in service.log.read_text(), 30)
    with pytest.raises(OSError):
        get_json(service.url, "/die")
    assert wait_until(lambda: health_of(service).ready, 20)
    assert running(directories) == service and service.alive()
    assert not any(command.startswith("sleep 600") for command in group(service))
    assert "ended with status 7; it starts again in 1 s" in service.log.read_text()


def test_it_does_not_outlive_its_keeper(start: Start, directories: Directories) -> None:
    assert start(free_port()) == 0
    service = running(directories)
    os.kill(service.pid, signal.SIGKILL)
    assert wait_until(lambda: group(service) == [], 30)


def test_a_start_that_fails_shows_what_vllm_said(
    start: Start, directories: Directories, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(free_port(), "--vllm_model_id", "failing") == 1
    said = capsys.readouterr().err
    assert "ended while starting" in said
    assert "vllm serve: error: unrecognized arguments: --no-such-option" in said
    assert find(directories) == []


def test_a_gateway_that_is_started_with_it_lists_it(vllm: Path, directories: Directories) -> None:
    from utils.kinds import KINDS, Place
    from utils.launch import config_listing

    service = KINDS["vllm"].at(Place("127.0.0.1", 9003), config=vllm, model_id=None, debug=False)
    before = directories.run.parent / "client_config.json"
    before.write_text('{"openai_compatible_server_urls": ["http://10.0.0.1:8000"]}')
    copy = config_listing([service], before, directories.run / "copy.json")
    assert json.loads(copy.read_text())["openai_compatible_server_urls"] == [
        "http://10.0.0.1:8000",
        {"url": "http://127.0.0.1:9003", "api_key": "secret-key"},
    ]
