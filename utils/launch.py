"""The commands of `start_app.py`: start a set of services, show them, stop them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from utils.config import read_file
from utils.readiness import Progress, health, wait_until_ready
from utils.services import (
    GRACE_SECONDS,
    Directories,
    Running,
    Service,
    ServiceError,
    check_gunicorn_config,
    find,
    start,
    stop,
)

SERVER_LISTS = {
    "cb_server_app": "continuous_batching_server_urls",
    "sb_server_app": "static_batching_server_urls",
}
"""Keys of the gateway's configuration that list the servers of each kind."""


def start_services(
    services: Sequence[Service],
    *,
    gunicorn_config: Path,
    directories: Directories,
    timeout_seconds: float,
    output: TextIO = sys.stderr,
) -> list[Running]:
    """Start `services` and return when all are ready; where one fails, none is left running.

    Raises:
        ConfigError: the gunicorn configuration is not usable.
        ServiceError: a service could not be started; says which and why.
    """
    check_gunicorn_config(gunicorn_config)
    started: list[Running] = []
    try:
        for service in services:
            started.append(start(service, gunicorn_config, directories))
            print(f"starting {service.name} at {service.url}, log in {started[-1].log}", file=output)
        wait_until_ready(started, Progress(output), timeout_seconds=timeout_seconds)
    except BaseException:
        if started:
            print("stopping what was started", file=output)
        stop(started)
        raise
    return started


def config_listing(servers: Sequence[Service], path: Path, copy: Path, output: TextIO = sys.stderr) -> Path:
    """A gateway's configuration that lists `servers` and no others.

    Args:
        servers: those that are started together with the gateway.
        path: the configuration that was asked for; used as it is where it lists them already.
        copy: where otherwise a copy with these lists is written.

    Returns:
        The one to use.

    Raises:
        ConfigError: the configuration cannot be read.
        ServiceError: the copy cannot be written.
    """
    config = read_file(path)
    lists: dict[str, list[str]] = {key: [] for key in SERVER_LISTS.values()}
    for server in servers:
        lists[SERVER_LISTS[server.kind]].append(server.url)
    if all(config.get(key) == urls for key, urls in lists.items()):
        return path
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        # it may hold keys of accounts: for this user's eyes only
        with os.fdopen(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(config | lists, file, indent=2)
    except OSError as error:
        raise ServiceError(f"cannot write {error.filename or copy}: {error.strerror}") from None
    print(f"the gateway uses {copy}: {path} with the servers that are started here", file=output)
    return copy.absolute()


def report_status(directories: Directories, output: TextIO = sys.stdout) -> int:
    """Print a line per service that was started.

    Returns:
        0 where all are ready, 1 where one is not, 3 where nothing was started.
    """
    services = find(directories)
    if not services:
        print("nothing is running", file=output)
        return 3
    all_ready = True
    for service in services:
        state, ready = "dead", False
        if service.alive():
            now = health(service.url)
            state, ready = now.state, now.ready
        all_ready &= ready
        print(f"{service.name:18} {state:9} pid {service.pid:<8} {service.url}  {service.log}", file=output)
    return 0 if all_ready else 1


def stop_services(
    directories: Directories, output: TextIO = sys.stderr, *, grace_seconds: float = GRACE_SECONDS
) -> int:
    """Drain and stop all services that were started; kill what takes longer than `grace_seconds`.

    Returns:
        0 where they ended by themselves, 1 where one had to be killed.
    """
    services = find(directories)
    if not services:
        print("nothing is running", file=output)
    killed = 0
    for service in services:
        if not service.alive():
            print(f"{service.name} (pid {service.pid}) had ended before", file=output)
            stop([service])
            continue
        print(f"stopping {service.name} (pid {service.pid})", file=output)
        if stop([service], grace_seconds):
            killed += 1
            print(f"killed {service.name}: it did not end within {grace_seconds:.0f} s", file=output)
    return 1 if killed else 0
