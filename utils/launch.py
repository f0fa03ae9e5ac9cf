"""Starts a set of services together (`start_app.py`); `utils.manage` shows and stops them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from utils.config import read_file
from utils.options import ClientAppOptions
from utils.readiness import Progress, wait_until_announced, wait_until_ready
from utils.running import VLLM, Directories, Running, ServiceError, stop
from utils.services import Service, check_gunicorn_config, start

SERVER_LISTS = {
    "cb_server_app": "continuous_batching_server_urls",
    "sb_server_app": "static_batching_server_urls",
}
"""Keys of the gateway's configuration that list the servers of each kind."""
FOREIGN_LIST = "openai_compatible_server_urls"
"""The key that lists engines which are not ours."""
_HOW_TO_JOIN = """\
    list {name}'s URL in the gateway's configuration, or give that file and the server's the same event_token;
    an edit of the gateway's file is seen within a second, one of the server's when it is started again"""


def start_services(
    services: Sequence[Service],
    *,
    gunicorn_config: Path,
    directories: Directories,
    timeout_seconds: float,
    optional: Collection[str] = (),
    output: TextIO = sys.stderr,
) -> list[Running]:
    """Start `services` and return when all are ready; where one fails, none is left running.

    Args:
        optional: names of those that may fail as long as another one of them does not; it is said why.

    Returns:
        What runs.

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
        failed = wait_until_ready(
            started, Progress(output), timeout_seconds=timeout_seconds, optional=optional
        )
        for loser, reason in failed:
            print(f"error: {loser.name} cannot serve this model: {reason}", file=output)
            stop([loser])
            started.remove(loser)
    except BaseException:
        if started:
            print("stopping what was started", file=output)
        stop(started)
        raise
    return started


def report_joins(servers: Sequence[Running], output: TextIO = sys.stderr) -> int:
    """Wait for the gateways that the (ready) `servers` asked to take them, and say which did not.

    Returns:
        0, or 1 where one was refused. It runs on, and joins when the gateway's configuration is mended;
        a gateway that does not answer yet is no error, because it may start later.
    """
    status = 0
    for name, health in wait_until_announced(servers).items():
        join = health.join
        if join is None or not join.problem:
            continue
        if join.state == "refused":
            status = 1
            print(f"error: {name} is ready but has not joined: {join.problem}", file=output)
            print(_HOW_TO_JOIN.format(name=name), file=output)
        else:
            print(f"{name} may not have joined and keeps asking: {join.problem}", file=output)
    return status


def config_listing(
    servers: Sequence[Service],
    path: Path,
    copy: Path,
    output: TextIO = sys.stderr,
    *,
    always: bool = False,
) -> Path:
    """A gateway's configuration that lists `servers`, no others of ours, and the foreign engines it listed.

    Args:
        servers: those that are started together with the gateway.
        path: the configuration that was asked for; used as it is where it lists them already.
        copy: where otherwise a copy with these lists is written.
        always: write the copy in any case.

    Returns:
        The one to use.

    Raises:
        ConfigError: the configuration cannot be read.
        ServiceError: the copy cannot be written.
    """
    config = read_file(path)
    lists: dict[str, list[str]] = {key: [] for key in SERVER_LISTS.values()}
    foreign = list(config.get(FOREIGN_LIST) or [])
    listed = {each["url"] if isinstance(each, dict) else each for each in foreign}
    for server in servers:
        if server.kind == VLLM:
            foreign += [_foreign(server)] if server.url not in listed else []
        else:
            lists[SERVER_LISTS[server.kind]].append(server.url)
    if foreign:
        lists[FOREIGN_LIST] = foreign
    if not always and all(config.get(key, []) == urls for key, urls in lists.items()):
        return path
    write_copy(config | lists, copy)
    if path != copy.absolute():
        print(f"the gateway uses {copy}: {path} with the servers that are started here", file=output)
    return copy.absolute()


def _foreign(server: Service) -> str | dict[str, str]:
    """A foreign engine as a gateway's configuration lists it, with the key that it asks for."""
    key = read_file(server.options.config_path).get("api_key")
    return server.url if key is None else {"url": server.url, "api_key": key}


def write_copy(config: Mapping[str, Any], copy: Path) -> None:
    """Write a configuration; it may hold keys of accounts: for this user's eyes only.

    Raises:
        ServiceError: it cannot be written.
    """
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(config, file, indent=2)
    except OSError as error:
        raise ServiceError(f"cannot write {error.filename or copy}: {error.strerror}") from None


def with_these_servers(
    services: Sequence[Service], directories: Directories, *, always: bool = False
) -> list[Service]:
    """`services` with a configuration of the gateway, the first, that lists the others and no more.

    Args:
        always: in a copy even where the one that was asked for does; so that it can be changed.

    Raises:
        ConfigError: the gateway's configuration cannot be read.
        ServiceError: a copy of it cannot be written.
    """
    gateway, *servers = services
    options = gateway.options
    assert isinstance(options, ClientAppOptions)
    copy = directories.run / f"{gateway.name}.json"
    path = config_listing(servers, options.client_config_file_path, copy, always=always)
    options = options.model_copy(update={"client_config_file_path": path})
    return [replace(gateway, options=options), *servers]
