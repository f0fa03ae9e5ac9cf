"""The services that were started: found by their pid files, looked at by HTTP, stopped.

A service is one process group (a session of its own): gunicorn's master, its one worker, and what
the worker starts; or the keeper of a foreign engine, and that engine. Its pid file in the run
directory names the group, and the group's command lines name the pid file, so that a number given to
a stranger meanwhile is not taken for ours.

Imports the standard library alone: what runs can be stopped without the environment it runs in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.commands import ROOT, command
from utils.process import PidFile, ask_to_end, end_group, group_alive

GATEWAY = "client_app"
VLLM = "vllm_app"
PORT_OPTIONS = {
    GATEWAY: "client_port",
    "cb_server_app": "cb_server_port",
    "sb_server_app": "sb_server_port",
    VLLM: "vllm_port",
}
"""Kinds of services, which pid and log files are named after, with the option that gives the port."""
GRACE_SECONDS = 75.0
"""How long a service may take to finish its requests; above gunicorn's ``graceful_timeout``."""


class ServiceError(Exception):
    """A service that cannot be started; the message is for the person at the terminal."""


@dataclass(frozen=True)
class Directories:
    """Where pid files and logs go."""

    run: Path = ROOT / "run"
    logs: Path = ROOT / "logs"


@dataclass(frozen=True)
class Running:
    """A service that was started, alive or not."""

    name: str
    pid_file: PidFile
    pid: int
    url: str
    log: Path
    log_start: int = 0
    """Where the lines of this start begin in the log."""

    @property
    def kind(self) -> str:
        """One of `PORT_OPTIONS`."""
        return self.name.rpartition("-")[0]

    @property
    def marker(self) -> str:
        """What stands in its command lines: not the whole path, for the directory may have moved."""
        return f"/{self.pid_file.path.name}"

    def alive(self) -> bool:
        return group_alive(self.pid, self.marker)

    def log_tail(self, lines: int = 20) -> list[str]:
        """The last lines that this start logged."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            text = log.read().decode(errors="replace").rstrip()
        # of a progress bar only what it showed last
        return [line.rpartition("\r")[2] for line in text.split("\n")[-lines:]]


def find(directories: Directories) -> list[Running]:
    """The services with a pid file, in the order in which they should stop.

    Gateways come first: what they still relay needs the servers.
    """
    found = []
    for path in directories.run.glob("*.pid"):
        entry = PidFile(path).read()
        if entry is not None:
            found.append(Running(path.stem, PidFile(path), *entry))
    return sorted(found, key=lambda running: (not running.name.startswith(GATEWAY), running.name))


def stop_command(running: Running, directories: Directories) -> str:
    """The shell command that stops `running` and nothing else."""
    port = running.name.rpartition("-")[2]
    arguments = ["--stop", f"--{PORT_OPTIONS[running.kind]}", port]
    if directories.run != Directories.run:
        arguments += ["--run_dir", str(directories.run.absolute())]
    return command("start_app.py", *arguments)


def stop(services: Sequence[Running], grace_seconds: float = GRACE_SECONDS) -> list[Running]:
    """Stop gateways, then all servers at once; each has `grace_seconds` to finish its requests.

    Returns:
        Those that had to be killed.
    """
    killed = []
    for gateways in (True, False):
        chosen = [service for service in services if (service.kind == GATEWAY) == gateways]
        living = [service for service in chosen if service.alive()]
        for service in living:
            ask_to_end(service.pid, service.marker)
        deadline = time.monotonic() + grace_seconds
        killed += [
            service
            for service in living
            if not end_group(service.pid, service.marker, deadline - time.monotonic())
        ]
        for service in chosen:
            service.pid_file.remove()
    return killed
