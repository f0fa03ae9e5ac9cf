"""The three services as background processes under gunicorn: start, look at, stop.

A service is one process group (a session of its own): gunicorn's master, its one worker, and what
the worker starts. Its pid file in the run directory names the group, and the group's command lines
name the pid file, so that a number given to a stranger meanwhile is not taken for ours.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from utils.addresses import bracketed, reachable
from utils.config import ConfigError
from utils.options import PREFIX, AppOptions, to_environment
from utils.process import PidFile, group_alive, port_is_free, stop_group, wait_until

ROOT = Path(__file__).resolve().parents[1]
GATEWAY = "client_app"
GRACE_SECONDS = 75.0
"""How long a service may take to finish its requests; above gunicorn's ``graceful_timeout``."""
_EXEC_SECONDS = 2.0


class ServiceError(Exception):
    """A service that cannot be started; the message is for the person at the terminal."""


@dataclass(frozen=True)
class Service:
    """What to start: `module` is the app's, `kind` what its pid and log file are named after."""

    kind: str
    module: str
    options: AppOptions

    @property
    def name(self) -> str:
        """Unique on this machine, so that several servers of a kind can run."""
        return f"{self.kind}-{self.options.port}"

    @property
    def url(self) -> str:
        return f"http://{reachable(self.options.host)}:{self.options.port}"


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
    def marker(self) -> str:
        return _marker(self.pid_file)

    def alive(self) -> bool:
        return group_alive(self.pid, self.marker)

    def log_tail(self, lines: int = 20) -> list[str]:
        """The last lines that this start logged."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            text = log.read().decode(errors="replace").rstrip()
        # of a progress bar only what it showed last
        return [line.rpartition("\r")[2] for line in text.split("\n")[-lines:]]


def _marker(pid_file: PidFile) -> str:
    return f"--name={pid_file.path.resolve()}"


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


def check_gunicorn_config(path: Path) -> None:
    """Refuse a gunicorn configuration that cannot be read or that asks for several workers.

    Raises:
        ConfigError: one line that says why.
    """
    try:
        workers = runpy.run_path(str(path)).get("workers", 1)
    except Exception as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from None
    if workers != 1:
        raise ConfigError(
            f"{path}: workers = {workers!r}: a service is one worker, because each would load the model "
            "again and count its own load; start more servers on other ports instead"
        )


def check_startable(services: Sequence[Service], directories: Directories) -> None:
    """Refuse services of which one cannot be started, before anything of a running one is touched.

    Raises:
        ServiceError: one runs already, its port is in use, or is that of another one.
    """
    for i, service in enumerate(services):
        _check_startable(service, directories)
        for other in services[:i]:
            if service.options.port == other.options.port != 0:
                raise ServiceError(
                    f"{other.name} and {service.name} cannot both have port {service.options.port}"
                )


def _check_startable(service: Service, directories: Directories) -> None:
    for running in find(directories):
        if running.name == service.name and running.alive():
            raise ServiceError(
                f"{service.name} runs already (pid {running.pid}); stop it with: start_app.py --stop"
            )
    host, port = service.options.host, service.options.port
    try:
        free = port_is_free(host, port)
    except OSError as error:
        raise ServiceError(f"{service.name}: cannot listen on {host}:{port}: {error.strerror}") from None
    if not free:
        raise ServiceError(f"{service.name}: port {port} of {host} is in use by another process")


def start(service: Service, gunicorn_config: Path, directories: Directories) -> Running:
    """Start `service` in the background; it still has to become ready.

    Raises:
        ServiceError: it runs already, its port is in use, or its files cannot be written.
    """
    _check_startable(service, directories)
    pid_file = PidFile(directories.run / f"{service.name}.pid")
    log = directories.logs / f"{service.name}.log"
    with _reserve_files(service, pid_file, log) as output:
        log_start = output.tell()
        process = subprocess.Popen(
            _command(service, gunicorn_config, pid_file),
            cwd=ROOT,
            env=_environment(service.options),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    pid_file.write(process.pid, service.url, log)
    running = Running(service.name, pid_file, process.pid, service.url, log, log_start)
    # for a moment after its start a process has no command line to be known by
    wait_until(lambda: running.alive() or process.poll() is not None, _EXEC_SECONDS)
    return running


def _reserve_files(service: Service, pid_file: PidFile, log: Path) -> BinaryIO:
    """The log, opened to append; all that can fail does so before there is a process to lose."""
    try:
        pid_file.reserve()
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("ab")
    except OSError as error:
        raise ServiceError(f"{service.name}: cannot write {error.filename}: {error.strerror}") from None


def _command(service: Service, gunicorn_config: Path, pid_file: PidFile) -> list[str]:
    return [
        *(sys.executable, "-m", "gunicorn", f"{service.module}:create_app()"),
        *("--config", str(gunicorn_config)),
        *("--bind", f"{bracketed(service.options.host)}:{service.options.port}"),
        *("--workers", "1"),
        "--no-control-socket",  # one path for all gunicorns of a user: three services would fight for it
        _marker(pid_file),
    ]


def _environment(options: AppOptions) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return inherited | to_environment(options)


def stop(services: Sequence[Running], grace_seconds: float = GRACE_SECONDS) -> list[Running]:
    """Stop `services` one after the other, each with time to finish its requests.

    Returns:
        Those that had to be killed.
    """
    killed = []
    for service in services:
        if service.alive() and not stop_group(service.pid, service.marker, grace_seconds):
            killed.append(service)
        service.pid_file.remove()
    return killed
