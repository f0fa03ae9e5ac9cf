"""Starts services as background processes (`utils.running` finds and stops them)."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from utils.addresses import bracketed, reachable
from utils.commands import ROOT
from utils.config import ConfigError
from utils.options import PREFIX, AppOptions, to_arguments, to_environment
from utils.process import PidFile, port_is_free, wait_until
from utils.running import Directories, Running, ServiceError, find, stop_command

_EXEC_SECONDS = 2.0


@dataclass(frozen=True)
class Service:
    """An app to start under gunicorn.

    Attributes:
        kind: what its pid and log file are named after.
        module: the app's.
        environment: variables that it has beside those of `start_app.py`.
    """

    kind: str
    module: str
    options: AppOptions
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique on this machine, so that several servers of a kind can run."""
        return f"{self.kind}-{self.options.port}"

    @property
    def url(self) -> str:
        return f"http://{reachable(self.options.host)}:{self.options.port}"

    def command(self, gunicorn_config: Path, pid_file: PidFile) -> list[str]:
        """What to run; it holds the path of `pid_file`, by which `Running` knows the process."""
        return [
            *(sys.executable, "-m", "gunicorn", f"{self.module}:create_app()"),
            *("--config", str(gunicorn_config)),
            *("--bind", f"{bracketed(self.options.host)}:{self.options.port}"),
            *("--workers", "1"),
            "--no-control-socket",  # one path for all gunicorns of a user: three services would fight for it
            f"--name={pid_file.path.resolve()}",
        ]

    def variables(self) -> dict[str, str]:
        """All variables of its process."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        return {**inherited, **self.environment, **to_environment(self.options)}


class Keeping(Service):
    """A script that keeps a foreign program running (`utils.keeper`): it is no app of gunicorn's."""

    def command(self, gunicorn_config: Path, pid_file: PidFile) -> list[str]:
        named = self.options.model_copy(update={"name": str(pid_file.path.resolve())})
        return [sys.executable, f"{self.module}.py", *to_arguments(named)]

    def variables(self) -> dict[str, str]:
        return {**os.environ, **self.environment}


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
                f"{service.name} runs already (pid {running.pid}); stop it with: "
                + stop_command(running, directories)
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
            service.command(gunicorn_config, pid_file),
            cwd=ROOT,
            env=service.variables(),
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
