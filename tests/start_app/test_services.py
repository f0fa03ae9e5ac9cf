"""Services in the background, on real gunicorn processes without a model."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.start_app.conftest import GUNICORN_CONFIG
from utils.config import ConfigError
from utils.launch import report_status, start_services, stop_services
from utils.process import PidFile, processes
from utils.readiness import get_json
from utils.services import (
    Directories,
    Running,
    Service,
    ServiceError,
    check_gunicorn_config,
    check_startable,
    find,
    start,
    stop,
)

Fake = Callable[..., Service]


def start_all(directories: Directories, *chosen: Service, timeout_seconds: float = 60) -> str:
    """Start services as `start_app.py` does; returns what it showed."""
    output = io.StringIO()
    start_services(
        chosen,
        gunicorn_config=GUNICORN_CONFIG,
        directories=directories,
        timeout_seconds=timeout_seconds,
        output=output,
    )
    return output.getvalue()


def test_start_waits_until_ready_and_shows_the_way_there(fake: Fake, directories: Directories) -> None:
    service = fake()
    shown = start_all(directories, service)
    assert get_json(service.url, "/ready")[0] == 200
    assert f"starting {service.name} at {service.url}" in shown
    assert f"{service.name} loading" in shown
    assert shown.splitlines()[-1].endswith(f"{service.name} ready")


def test_options_reach_the_worker_and_inherited_ones_do_not(
    fake: Fake, directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERENCE_STACK_CLIENT_CONFIG_HOT_UPDATE_INTERVAL_MINUTES", "no number")
    service = fake()
    start_all(directories, service)
    assert get_json(service.url, "/status")[1] == {
        "state": "ready",
        "debug": True,
        "port": service.options.port,
    }


def test_status_and_stop(fake: Fake, directories: Directories) -> None:
    output = io.StringIO()
    assert report_status(directories, output) == 3
    service = fake()
    start_all(directories, service)
    assert report_status(directories, output) == 0
    (running,) = find(directories)
    assert output.getvalue().splitlines()[-1].split()[:4] == [service.name, "ready", "pid", str(running.pid)]
    assert stop_services(directories, output) == 0
    assert not running.alive()
    assert find(directories) == []
    with pytest.raises(OSError, match="refused"):
        get_json(service.url, "/ready")
    assert stop_services(directories, output) == 0
    assert output.getvalue().splitlines()[-1] == "nothing is running"


def test_stop_lets_requests_in_flight_finish(fake: Fake, directories: Directories) -> None:
    service = fake()
    start_all(directories, service)
    answers: list[object] = []
    caller = threading.Thread(target=lambda: answers.append(get_json(service.url, "/slow")))
    caller.start()
    time.sleep(0.3)
    assert stop(find(directories)) == []
    caller.join()
    assert answers == [(200, "done")]


def test_stop_kills_what_does_not_end_and_says_so(fake: Fake, directories: Directories) -> None:
    service = fake("lingering")
    start_all(directories, service)
    (running,) = find(directories)
    output = io.StringIO()
    assert stop_services(directories, output, grace_seconds=1) == 1
    assert f"killed {service.name}: it did not end within 1 s" in output.getvalue()
    assert not any(process.group == running.pid for process in processes())


@pytest.mark.parametrize(
    ("mode", "what", "reason"),
    [
        (
            "misconfigured",
            "ended while starting",
            "ERROR startup: client_config.json:3: unknown key 'heartbeat'",
        ),
        ("failing", "failed to start", ""),
    ],
)
def test_a_failed_start_shows_its_log_and_stops_the_others(
    fake: Fake, directories: Directories, mode: str, what: str, reason: str
) -> None:
    good = fake(kind="cb_server_app")
    start_all(directories, good)
    bystander = find(directories)
    beside, bad = fake(mode, kind="sb_server_app"), fake(mode)
    with pytest.raises(ServiceError) as caught:
        start_all(directories, beside, bad)
    message = str(caught.value)
    assert what in message
    assert reason in message
    assert "Traceback" not in message
    assert find(directories) == bystander
    assert bystander[0].alive()


def test_only_this_starts_lines_are_shown(fake: Fake, directories: Directories) -> None:
    service = fake("misconfigured")
    directories.logs.mkdir()
    (directories.logs / f"{service.name}.log").write_text("of an earlier start\n")
    with pytest.raises(ServiceError) as caught:
        start_all(directories, service)
    assert "of an earlier start" not in str(caught.value)


def test_a_progress_bar_is_one_line_of_the_log(directories: Directories) -> None:
    directories.logs.mkdir()
    log = directories.logs / "a.log"
    log.write_bytes(b"first\nloading: 1%\rloading: 50%\rloading: 100%\nlast\n")
    running = Running("a", PidFile(directories.run / "a.pid"), 1, "http://127.0.0.1:1", log)
    assert running.log_tail() == ["first", "loading: 100%", "last"]
    assert running.log_tail(1) == ["last"]


def test_a_service_that_is_never_ready_is_given_up(fake: Fake, directories: Directories) -> None:
    service = fake("never ready")
    with pytest.raises(ServiceError, match=f"{service.name} was not ready after 1 s"):
        start_all(directories, service, timeout_seconds=1)
    assert find(directories) == []


def test_a_port_in_use_is_refused(fake: Fake, directories: Directories) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} of 127.0.0.1 is in use by another process"):
            start_all(directories, fake(port=port))


def test_two_services_cannot_have_one_port(fake: Fake, directories: Directories) -> None:
    first = fake()
    second = fake(kind="cb_server_app", port=first.options.port)
    with pytest.raises(ServiceError, match=f"{first.name} and {second.name} cannot both have port"):
        check_startable([first, second], directories)


@pytest.mark.parametrize("place", ["run", "logs", "run/{name}.pid", "logs/{name}.log"])
def test_what_cannot_be_written_is_one_line_and_nothing_is_left_running(
    fake: Fake, directories: Directories, place: str
) -> None:
    service = fake()
    in_the_way = directories.run.parent / place.format(name=service.name)
    if in_the_way.suffix:
        in_the_way.mkdir(parents=True)
    else:
        in_the_way.write_text("not a directory")
    with pytest.raises(ServiceError, match=f"^{service.name}: cannot write {in_the_way}: "):
        start_all(directories, service)
    marker = str(directories.run / service.name)
    assert not any(marker in process.command for process in processes())


def test_a_second_start_is_refused_and_harms_nothing(fake: Fake, directories: Directories) -> None:
    service = fake()
    start_all(directories, service)
    with pytest.raises(ServiceError, match=rf"{service.name} runs already \(pid \d+\)"):
        start_all(directories, service)
    assert get_json(service.url, "/ready")[0] == 200


def test_a_pid_that_belongs_to_a_stranger_is_left_alone(fake: Fake, directories: Directories) -> None:
    service = fake()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        PidFile(directories.run / f"{service.name}.pid").write(
            stranger.pid, service.url, directories.logs / "x"
        )
        output = io.StringIO()
        assert report_status(directories, output) == 1
        assert "dead" in output.getvalue()
        start_all(directories, service)
        assert stop_services(directories, output) == 0
        assert stranger.poll() is None
        stranger.communicate(b"\n")


def test_a_worker_without_its_master_is_still_stopped(fake: Fake, directories: Directories) -> None:
    service = fake()
    start_all(directories, service)
    (running,) = find(directories)
    os.kill(running.pid, signal.SIGKILL)
    assert running.alive()
    assert stop_services(directories, io.StringIO()) == 0
    assert not running.alive()


def test_gateways_stop_first(directories: Directories) -> None:
    for name in ("sb_server_app-2", "client_app-9", "cb_server_app-1", "cb_server_app-0"):
        PidFile(directories.run / f"{name}.pid").write(1, "http://127.0.0.1:1", directories.logs / name)
    assert [running.name for running in find(directories)] == [
        "client_app-9",
        "cb_server_app-0",
        "cb_server_app-1",
        "sb_server_app-2",
    ]


def test_an_interrupted_start_leaves_nothing(
    fake: Fake, directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Running] = []

    def interrupted(service: Service, config: Path, directories: Directories) -> Running:
        if started:
            raise KeyboardInterrupt
        started.append(start(service, config, directories))
        return started[0]

    monkeypatch.setattr("utils.launch.start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_all(directories, fake(), fake())
    assert not started[0].alive()
    assert find(directories) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("workers = 4", "workers = 4: a service is one worker"),
        ("workers = ", "SyntaxError: "),
        ("import nothing_of_that_name", "ModuleNotFoundError: "),
    ],
)
def test_a_gunicorn_configuration_that_cannot_work_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "gunicorn_config.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        check_gunicorn_config(path)
    assert str(caught.value).startswith(f"{path}: {reason}")
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        check_gunicorn_config(tmp_path / "nothing.py")
