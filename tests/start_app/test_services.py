"""Services in the background, on real gunicorn processes without a model."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.start_app.conftest import Fake, start_all
from utils import process
from utils.commands import ROOT
from utils.manage import report_status, stop_services
from utils.process import PidFile, processes, wait_until
from utils.readiness import get_json
from utils.running import Directories, Running, ServiceError, find, stop
from utils.services import Service, start


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
        "slow": 0,
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
    assert wait_until(lambda: get_json(service.url, "/status")[1]["slow"] == 1, 30)
    assert stop(find(directories)) == []
    caller.join()
    assert answers == [(200, "done")]


def test_servers_drain_at_the_same_time_after_the_gateway(
    fake: Fake, directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ("client_app", "cb_server_app", "sb_server_app")
    start_all(directories, *(fake(kind=kind) for kind in kinds))
    kind_of = {service.pid: service.kind for service in find(directories)}
    done: list[tuple[str, str]] = []

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def note(group: int, *rest: Any) -> Any:
            done.append((name, kind_of[group]))
            return call(group, *rest)

        return note

    for name in ("ask_to_end", "end_group"):
        monkeypatch.setattr(f"utils.running.{name}", noted(name, getattr(process, name)))
    assert stop(find(directories)) == []
    gateway, first, second = kinds
    assert done == [
        ("ask_to_end", gateway),
        ("end_group", gateway),
        ("ask_to_end", first),
        ("ask_to_end", second),
        ("end_group", first),
        ("end_group", second),
    ]


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


def test_one_service_is_stopped_and_started_again_alone(fake: Fake, directories: Directories) -> None:
    first, second = fake(kind="cb_server_app"), fake(kind="cb_server_app")
    start_all(directories, first, second)
    other = next(running for running in find(directories) if running.name == second.name)
    output = io.StringIO()
    assert stop_services(directories, output, names=[first.name]) == 0
    assert find(directories) == [other] and other.alive()
    assert report_status(directories, output, names=[second.name]) == 0
    assert report_status(directories, output, names=[first.name, second.name]) == 1
    assert report_status(directories, output, names=[first.name]) == 3
    start_all(directories, first)
    assert report_status(directories, output, names=[first.name, second.name]) == 0
    assert other in find(directories) and other.alive()


def test_what_is_to_be_stopped_and_does_not_run_is_said(fake: Fake, directories: Directories) -> None:
    service = fake()
    start_all(directories, service)
    output = io.StringIO()
    assert stop_services(directories, output, names=["cb_server_app-1"]) == 0
    assert output.getvalue() == f"cb_server_app-1 is not running; what runs: {service.name}\n"
    assert find(directories)[0].alive()


def test_the_command_that_a_refused_start_prints_stops_that_service(
    fake: Fake, directories: Directories
) -> None:
    service, other = fake(), fake(kind="sb_server_app")
    start_all(directories, service, other)
    with pytest.raises(ServiceError) as caught:
        start_all(directories, service)
    command = str(caught.value).partition("stop it with: ")[2]
    done = subprocess.run(command, shell=True, env={"PATH": "/usr/bin:/bin"}, check=False)
    assert done.returncode == 0
    assert [running.name for running in find(directories)] == [other.name]


def test_any_python_stops_what_runs_without_its_environment(fake: Fake, directories: Directories) -> None:
    service = fake()
    start_all(directories, service)
    (running,) = find(directories)
    # -S: without installed packages
    command = [sys.executable, "-S", "start_app.py", "--run_dir", str(directories.run)]
    shown = subprocess.run([*command, "--status"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.split()[:2] == [service.name, "ready"]
    subprocess.run([*command, "--stop"], cwd=ROOT, check=True)
    assert not running.alive()


def test_a_service_whose_directories_were_moved_is_still_known(fake: Fake, tmp_path: Path) -> None:
    before = Directories(tmp_path / "before" / "run", tmp_path / "before" / "logs")
    after = Directories(tmp_path / "after" / "run", tmp_path / "after" / "logs")
    start_all(before, fake())
    (tmp_path / "before").rename(tmp_path / "after")
    (running,) = find(after)
    try:
        assert running.alive()
    finally:
        assert stop_services(after, io.StringIO()) == 0
    assert not any(process.group == running.pid for process in processes())


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
