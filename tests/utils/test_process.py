"""Processes and ports, on real ones."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from utils import process
from utils.process import PidFile, ask_to_end, end_group, group_alive, port_is_free, processes

MARKER = "--name=tests-utils-process"

IGNORES_SIGTERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1); time.sleep(60)"
)
OBEYS = "print(1, flush=True); import time; time.sleep(60)"
HAS_CHILD = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid); time.sleep(60)"


@pytest.fixture
def spawn() -> Iterator[Callable[[str], tuple[subprocess.Popen[str], str]]]:
    """Start a script in a group of its own; returns it and its first line of output."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str) -> tuple[subprocess.Popen[str], str]:
        child = subprocess.Popen(
            [sys.executable, "-u", "-c", code, MARKER],
            start_new_session=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        assert child.stdout is not None
        return child, child.stdout.readline()

    yield run
    for child in started:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


Spawn = Callable[[str], tuple[subprocess.Popen[str], str]]


def stop_group(group: int, marker: str, grace_seconds: float) -> bool:
    """Ask a group to end, and wait for it; False if it had to be killed."""
    ask_to_end(group, marker)
    return end_group(group, marker, grace_seconds)


def test_a_live_group_is_known_by_its_marker(spawn: Spawn) -> None:
    child, _ = spawn(OBEYS)
    assert group_alive(child.pid, MARKER)
    assert not group_alive(child.pid, "--name=somebody else")
    assert not group_alive(os.getpid(), MARKER)


def test_the_two_ways_to_list_processes_agree(spawn: Spawn) -> None:
    child, _ = spawn(OBEYS)
    found = [list(filter(lambda p: p.pid == child.pid, way())) for way in (processes, process._from_ps)]
    assert [(p.pid, p.group, MARKER in p.command) for (p,) in found] == [(child.pid, child.pid, True)] * 2


def test_a_zombie_is_not_alive(spawn: Spawn) -> None:
    child, _ = spawn(OBEYS)
    child.kill()
    while group_alive(child.pid, MARKER):  # not waited for: it stays as a zombie
        time.sleep(0.01)
    assert child.poll() is not None


def test_stop_is_gentle_first(spawn: Spawn) -> None:
    child, _ = spawn(OBEYS)
    assert stop_group(child.pid, MARKER, grace_seconds=30)
    assert child.wait() == -15


def test_stop_kills_after_the_grace_period(spawn: Spawn) -> None:
    child, _ = spawn(IGNORES_SIGTERM)
    assert not stop_group(child.pid, MARKER, grace_seconds=0.3)
    assert child.wait() == -9


def test_stop_leaves_no_helper_behind(spawn: Spawn) -> None:
    child, helper = spawn(HAS_CHILD)
    assert stop_group(child.pid, MARKER, grace_seconds=30)
    while any(p.pid == int(helper) for p in processes()):
        time.sleep(0.01)


def test_stop_of_a_group_that_has_ended_does_nothing(spawn: Spawn) -> None:
    child, _ = spawn(OBEYS)
    child.kill()
    child.wait()
    assert stop_group(child.pid, MARKER, grace_seconds=1)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_port_is_free_until_a_server_listens(host: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.listen()
        assert not port_is_free("127.0.0.1", port)
    assert port_is_free(host, port)


def test_a_foreign_address_is_an_error() -> None:
    with pytest.raises(OSError, match="assign"):
        port_is_free("192.0.2.1", 8000)


def test_a_pid_file_keeps_what_was_written(tmp_path: Path) -> None:
    pid_file = PidFile(tmp_path / "run" / "a.pid")
    assert pid_file.read() is None
    pid_file.write(12, "http://127.0.0.1:8000", Path("/logs/a.log"))
    assert pid_file.read() == (12, "http://127.0.0.1:8000", Path("/logs/a.log"))
    assert pid_file.path.read_text().splitlines()[0] == "12"
    pid_file.path.write_text("garbage")
    assert pid_file.read() is None
    pid_file.remove()
    pid_file.remove()
    assert not pid_file.path.exists()
