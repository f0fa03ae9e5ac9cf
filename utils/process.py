"""Processes and ports: what `start_app.py` needs of the operating system."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc/self/stat")
_POLL_SECONDS = 0.1
_KILL_SECONDS = 10.0  # the kernel needs a moment to take a large process apart


@dataclass(frozen=True)
class Process:
    """A live process."""

    pid: int
    group: int
    command: str


def processes() -> Iterator[Process]:
    """All live processes of the machine; zombies are not alive."""
    return _from_proc() if _PROC.exists() else _from_ps()


def _from_proc() -> Iterator[Process]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # "pid (name) state ppid pgrp …", where the name may hold spaces and brackets
            state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, ValueError):  # it ended meanwhile
            continue
        if state not in "ZX":
            yield Process(int(entry.name), int(group), command)


def _from_ps() -> Iterator[Process]:
    command = ["ps", "-A", "-ww", "-o", "pid=,pgid=,stat=,command="]
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        pid, group, state, *rest = line.split(maxsplit=3)
        if not state.startswith("Z"):
            yield Process(int(pid), int(group), "".join(rest))


def group_alive(group: int, marker: str) -> bool:
    """Whether a process of the process group `group` has `marker` in its command line.

    The marker tells our processes from strangers that were given the same number later.
    """
    return any(process.group == group and marker in process.command for process in processes())


def ask_to_end(group: int, marker: str) -> None:
    """Send SIGTERM to the leader of the process group `group`, or to all of it where that is gone."""
    leader_lives = any(process.pid == group and marker in process.command for process in processes())
    with suppress(ProcessLookupError):
        (os.kill if leader_lives else os.killpg)(group, signal.SIGTERM)


def end_group(group: int, marker: str, grace_seconds: float) -> bool:
    """Wait until `group`, which was asked to, has ended, and kill what is left of it after `grace_seconds`.

    Returns:
        False if it had to be killed.
    """
    ended = wait_until(lambda: not group_alive(group, marker), grace_seconds)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)  # also helpers that outlived the service
    # a dying process loses its command line before it closes its sockets
    wait_until(lambda: not any(process.group == group for process in processes()), _KILL_SECONDS)
    return ended


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Return once `condition` holds; False if it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def port_is_free(host: str, port: int) -> bool:
    """Whether a service could listen on `port` of `host` now.

    Raises:
        OSError: `host` is not an address of this machine, or the port may not be used by this user.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


@dataclass(frozen=True)
class PidFile:
    """What is remembered of a started service: one line each for process id, URL and log file."""

    path: Path

    def reserve(self) -> None:
        """Make the file, empty if there is none; OSError where it could not be written later."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.open("a").close()

    def write(self, pid: int, url: str, log: Path) -> None:
        self.reserve()
        self.path.write_text(f"{pid}\n{url}\n{log}\n")

    def read(self) -> tuple[int, str, Path] | None:
        """(process id, URL, log file), or None where there is no (readable) file."""
        try:
            pid, url, log = self.path.read_text().splitlines()
            return int(pid), url, Path(log)
        except (OSError, ValueError):
            return None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
