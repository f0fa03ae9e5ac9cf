"""Looking at services from outside: their state by HTTP, and waiting until they are ready."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TextIO
from urllib.parse import urlsplit

from protocol import routes
from utils.running import VLLM, Running, ServiceError

_POLL_SECONDS = 0.2
_HTTP_SECONDS = 5.0
_REPORT_SECONDS = 5.0
_CANNOT = " cannot be served: "
"""What a server logs before the reason."""


@dataclass(frozen=True)
class Health:
    """What a service reports; `state` is for people, e.g. ``loading``."""

    ready: bool
    state: str
    status: dict[str, Any]
    join: Join | None = None
    """Of a server that asked a gateway to take it."""


@dataclass(frozen=True)
class Join:
    """How far a server's registration with its gateway got."""

    state: str
    """As `protocol.status.Announcement` has it."""
    problem: str
    """Why it has not joined, for people; empty where it has."""


def get_json(url: str, path: str, key: str | None = None) -> tuple[int, Any]:
    """(HTTP status, decoded body or None) of a GET, with an API key where one is given.

    Raises:
        OSError: no answer.
    """
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_HTTP_SECONDS)
    try:
        connection.request("GET", path, headers={} if key is None else {"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"not an HTTP service: {error!r}") from error
    finally:
        connection.close()
    try:
        return answer.status, json.loads(body)
    except (ValueError, RecursionError):
        return answer.status, None


def health(url: str) -> Health:
    """The health of the service at `url`; a service that does not answer is starting."""
    try:
        code, readiness = get_json(url, routes.READY)
        body = get_json(url, routes.STATUS)[1]
    except OSError:
        return Health(False, "starting", {})
    status = body if isinstance(body, dict) else {}
    ready, join = code == 200, None
    if isinstance(readiness, dict) and readiness.get("announcement"):
        join = _join(readiness["announcement"])
    return Health(ready, "ready" if ready else str(status.get("state", "starting")), status, join)


def health_of(service: Running) -> Health:
    """The health of a service that was started; of a foreign engine only whether it takes requests."""
    if service.kind != VLLM:
        return health(service.url)
    try:
        ready = get_json(service.url, routes.HEALTH)[0] == 200
    except OSError:
        ready = False
    return Health(ready, "ready" if ready else "loading", {})


def _join(announcement: dict[str, str]) -> Join:
    state, gateway, problem = (announcement[key] for key in ("state", "gateway", "problem"))
    if state == "unconfirmed":
        listed = _lists(gateway, announcement["server"])
        if listed is not None:
            state = "accepted" if listed else "refused"
    if state in ("accepted", "pending"):
        return Join(state, "")
    what = {"refused": "does not take it", "failed": "cannot be reached"}.get(state, "may not take it")
    return Join(state, f"the gateway {gateway} {what}: {problem}")


def _lists(gateway: str, server: str) -> bool | None:
    """Whether the gateway works with the server at this URL; None where it does not say."""
    try:
        replicas = get_json(gateway, routes.STATUS)[1]["replicas"]
        return server in [replica["url"] for replica in replicas]
    except (OSError, LookupError, TypeError):  # it is gone, or tells only those with a key
        return None


class Progress:
    """Shows the state of services while they start: one line that is rewritten on a terminal,
    elsewhere a line per change and every few seconds."""

    def __init__(self, output: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._output = output
        self._clock = clock
        self._start = self._last_report = clock()
        self._shown = ""

    def show(self, states: dict[str, str]) -> None:
        now = self._clock()
        text = ", ".join(f"{name} {state}" for name, state in states.items())
        line = f"{now - self._start:5.1f} s  {text}"
        if self._output.isatty():
            self._output.write(f"\r\x1b[K{line}")
        elif text != self._shown or now - self._last_report >= _REPORT_SECONDS:
            self._output.write(line + "\n")
            self._last_report = now
        self._shown = text
        self._output.flush()

    def close(self) -> None:
        if self._output.isatty():
            self._output.write("\n")


def wait_until_ready(
    services: Sequence[Running],
    progress: Progress,
    *,
    timeout_seconds: float,
    optional: Collection[str] = (),
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[tuple[Running, str]]:
    """Return when every service is ready.

    Args:
        optional: names of those that may fail as long as another one of them does not.

    Returns:
        Which of these failed, and why in one line.

    Raises:
        ServiceError: another one ended, reported a failure, or took longer than `timeout_seconds`.
    """
    deadline = clock() + timeout_seconds
    states = {service.name: "starting" for service in services}
    failed: list[tuple[Running, str]] = []
    try:
        while True:
            for service in [service for service in services if service.name in states]:
                problem, states[service.name] = _look_at(service)
                if problem is None:
                    continue
                del states[service.name]
                if service.name not in optional:
                    raise ServiceError(_failure(service, problem))
                failed.append((service, _reason(service)))
                if not states.keys() & set(optional):
                    raise ServiceError("; ".join(f"{each.name}: {why}" for each, why in failed))
            progress.show(states)
            if all(state == "ready" for state in states.values()):
                return failed
            if clock() > deadline:
                late = next(service for service in services if states.get(service.name, "ready") != "ready")
                raise ServiceError(_failure(late, f"was not ready after {timeout_seconds:.0f} s"))
            sleep(_POLL_SECONDS)
    finally:
        progress.close()


def _look_at(service: Running) -> tuple[str | None, str]:
    """(how it failed or None, its state)."""
    if not service.alive():
        return "ended while starting", ""
    state = health_of(service).state
    return ("failed to start" if state == "failed" else None), state


def wait_until_announced(services: Sequence[Running], *, timeout_seconds: float = 15.0) -> dict[str, Health]:
    """The health of each of the (ready) `services`, by name, once the gateway that it asked to take it
    has answered."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        found = {service.name: health_of(service) for service in services}
        pending = [name for name, now in found.items() if now.join and now.join.state == "pending"]
        if not pending or time.monotonic() > deadline:
            return found
        time.sleep(_POLL_SECONDS)


def _reason(service: Running) -> str:
    """Why a server cannot serve its model, from its log."""
    lines = service.log_tail(200)
    said = [line.partition(_CANNOT)[2] for line in lines if _CANNOT in line]
    return said[-1] if said else next((line for line in reversed(lines) if line.strip()), "see its log")


def _failure(service: Running, what: str) -> str:
    lines = "\n".join(f"    {line}" for line in service.log_tail())
    return f"{service.name} {what}; the end of {service.log}:\n{lines}"
