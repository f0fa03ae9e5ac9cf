"""Shows and stops the services that were started: ``start_app.py --status`` and ``--stop``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from utils.readiness import health_of
from utils.running import GRACE_SECONDS, Directories, Running, find, stop


def select(directories: Directories, names: Sequence[str], output: TextIO) -> list[Running]:
    """The services called `names`, or all where none is given; says which of them do not run."""
    found = find(directories)
    running = ", ".join(service.name for service in found)
    if not found:
        print("nothing is running", file=output)
    for name in names:
        if found and name not in {service.name for service in found}:
            print(f"{name} is not running; what runs: {running}", file=output)
    return [service for service in found if not names or service.name in names]


def report_status(
    directories: Directories,
    output: TextIO = sys.stdout,
    *,
    names: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
) -> int:
    """Print a line per service that was started, or only for `names`, with its label in front if it has one.

    Returns:
        0 where all are ready and none was refused by its gateway, 1 where one is not, 3 where
        nothing was started.
    """
    services = select(directories, names, output)
    all_well = len(services) >= len(names)
    for service in services:
        state, well, joined = "dead", False, ""
        if service.alive():
            now = health_of(service)
            state, well = now.state, now.ready
            if now.join and now.join.problem:
                joined, well = f"  {now.join.problem}", well and now.join.state != "refused"
        all_well &= well
        label = f"{labels.get(service.name, ''):12} " if labels else ""
        line = f"{label}{service.name:18} {state:9} pid {service.pid:<8} {service.url}  {service.log}{joined}"
        print(line, file=output)
    return 3 if not services else 0 if all_well else 1


def stop_services(
    directories: Directories,
    output: TextIO = sys.stderr,
    *,
    names: Sequence[str] = (),
    grace_seconds: float = GRACE_SECONDS,
) -> int:
    """Drain and stop all services that were started, or only `names`; kill what takes longer than
    `grace_seconds`.

    Returns:
        0 where they ended by themselves, 1 where one had to be killed.
    """
    services = select(directories, names, output)
    for service in services:
        said = "stopping {} (pid {})" if service.alive() else "{} (pid {}) had ended before"
        print(said.format(service.name, service.pid), file=output)
    killed = stop(services, grace_seconds)
    for service in killed:
        print(f"killed {service.name}: it did not end within {grace_seconds:.0f} s", file=output)
    return 1 if killed else 0
