"""Services come, go, die and come back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import httpx2
import pytest

from benchmarks.ports import free_port
from tests.e2e.stack import IN_FOREGROUND, MODEL, MODEL_DIRECTORY, ROOT, Stack, call, children
from utils.config import read_file
from utils.options import CONFIGS
from utils.process import processes, wait_until

KINDS = ("client_app", "cb_server_app", "sb_server_app")
BODY = {"model": MODEL, "prompt": "17 + 25 =", "generation_config": {"max_new_tokens": 8}}
LONG_BODY = BODY | {"stream": True, "generation_config": {"max_new_tokens": 400, "ignore_eos": True}}


def poll(url: str, path: str, body: Any, status: int, *, seconds: float) -> bool:
    """Whether a request gets `status` within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if call(url, path, body).status == status:
                return True
        except OSError:
            pass
        time.sleep(0.1)
    return False


def test_status_tells_what_runs(stack: Stack) -> None:
    done = stack.start_app("--status")
    assert done.code == 0
    lines = [line.split() for line in done.output.splitlines()]
    names = [f"{kind}-{port}" for kind, port in zip(KINDS, stack.ports, strict=True)]
    assert [(line[0], line[1]) for line in lines] == [(name, "ready") for name in names]


def test_a_second_start_is_refused(stack: Stack) -> None:
    done = stack.start_app("--all")
    assert done.code == 1
    assert "runs already" in done.errors
    assert stack.start_app("--status").code == 0


def test_a_killed_server_is_a_503_until_it_is_back(stack: Stack) -> None:
    assert call(stack.gateway, "/completion/v2", BODY).status == 200
    server = stack.running("cb_server_app")
    os.killpg(server.pid, signal.SIGKILL)
    answer = call(stack.gateway, "/completion/v2", BODY)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert call(stack.gateway, "/completion/v1", BODY).status == 200, "the other server is not concerned"

    started = stack.start_app("--start_cb_server_app")
    assert started.code == 0, started.errors
    assert poll(stack.gateway, "/completion/v2", BODY, 200, seconds=30)


def test_a_killed_worker_is_replaced(stack: Stack) -> None:
    server = stack.running("sb_server_app")
    (worker,) = [p for p in processes() if p.group == server.pid and p.pid != server.pid]
    os.kill(worker.pid, signal.SIGKILL)
    assert poll(stack.gateway, "/completion/v1", BODY, 200, seconds=90)


def test_nothing_outlives_what_started_it(empty_stack: Stack) -> None:
    """The engine of a killed worker ends, and so do worker and engine of a killed master."""

    def gone(pids: set[int]) -> bool:
        return not pids & {process.pid for process in processes()}

    started = empty_stack.start_app("--start_cb_server_app")
    assert started.code == 0, started.errors
    master = empty_stack.running("cb_server_app").pid
    (worker,) = children(master)
    engine = children(worker)
    assert len(engine) == 1
    os.kill(worker, signal.SIGKILL)
    assert wait_until(lambda: gone({worker} | engine), 30)
    assert poll(empty_stack.cb_server, "/completion/v2", BODY, 200, seconds=90)
    (worker,) = children(master)
    family = {master, worker} | children(worker)
    assert len(family) == 3
    os.kill(master, signal.SIGKILL)
    assert wait_until(lambda: gone(family), 30)


def test_one_service_can_live_alone(empty_stack: Stack) -> None:
    client_config = empty_stack.directory / "client.json"
    client_config.write_text("{}")
    started = empty_stack.start_app("--start_client_app", "--client_config_file_path", str(client_config))
    assert started.code == 0, started.errors
    assert call(empty_stack.gateway, "/v1/models").json["data"] == []
    stopped = empty_stack.start_app("--stop")
    assert (stopped.code, empty_stack.start_app("--status").code) == (0, 3)
    assert empty_stack.start_app("--stop").errors == "nothing is running\n"


@pytest.mark.parametrize(("script", "ready"), IN_FOREGROUND.items())
def test_an_app_runs_in_the_foreground_until_ctrl_c(script: str, ready: str) -> None:
    port = free_port()
    command = [sys.executable, str(ROOT / script), "--port", str(port)]
    with subprocess.Popen(command, cwd="/", stderr=subprocess.PIPE, text=True) as process:
        try:
            assert poll(f"http://127.0.0.1:{port}", ready, None, 200, seconds=120)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode in (0, -signal.SIGINT)
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_gunicorn_ends_at_once_when_its_master_is_interrupted(number: signal.Signals) -> None:
    port = free_port()
    settings = ["--config", str(CONFIGS / "gunicorn_config.py"), "--graceful-timeout", "600"]
    app = ["continuous_batching_server_app:create_app()", "--bind", f"127.0.0.1:{port}"]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([sys.executable, "-m", "gunicorn", *settings, *app], cwd=ROOT) as process:
        try:
            assert poll(url, IN_FOREGROUND["continuous_batching_server_app.py"], None, 200, seconds=120)
            with httpx2.stream("POST", f"{url}/completion/v2", json=LONG_BODY) as answer:
                assert next(answer.iter_lines()).startswith("data: ")
                process.send_signal(number)
                process.wait(60)
        finally:
            process.kill()
    assert process.returncode == 0


@pytest.mark.parametrize(
    "script",
    [
        "start_app.py",
        "client_app.py",
        "continuous_batching_server_app.py",
        "static_batching_server_app.py",
        "vllm_app.py",
    ],
)
def test_help(script: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--host" in done.stdout


def test_a_server_that_may_not_join_says_so_and_joins_with_the_token(empty_stack: Stack) -> None:
    client_config = empty_stack.directory / "client.json"
    client_config.write_text("{}")
    started = empty_stack.start_app("--start_client_app", "--client_config_file_path", str(client_config))
    assert started.code == 0, started.errors
    assert call(empty_stack.gateway, "/completion/v2", BODY).status == 404

    server = ["--start_cb_server_app", "--client_url", empty_stack.gateway]
    refused = empty_stack.start_app(*server)
    assert refused.code == 1
    assert f"is ready at {empty_stack.cb_server}" in refused.output
    assert f"has not joined: the gateway {empty_stack.gateway} does not take it: " in refused.errors
    assert "same event_token" in refused.errors
    announcement = call(empty_stack.cb_server, "/status").json["announcement"]
    assert announcement["problem"]
    shown = empty_stack.start_app("--status")
    assert shown.code == 1
    assert "does not take it" in shown.output

    stopped = empty_stack.start_app("--stop", "--cb_server_port", str(empty_stack.ports[1]))
    assert stopped.code == 0
    client_config.write_text('{"event_token": "secret"}')
    config = read_file(CONFIGS / "cb_server_config.json") | {"event_token": "secret"}
    config["model_loading_config"]["model_name_or_path"] = str(MODEL_DIRECTORY)
    path = empty_stack.directory / "cb.json"
    path.write_text(json.dumps(config))
    joined = empty_stack.start_app(*server, "--cb_server_config_file_path", str(path))
    assert (joined.code, empty_stack.start_app("--status").code) == (0, 0), joined.errors
    assert poll(empty_stack.gateway, "/completion/v2", BODY, 200, seconds=30)
