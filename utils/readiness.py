"""Looking at services from outside: their state by HTTP, and waiting until they are ready."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO
from urllib.parse import urlsplit

from protocol import routes
from utils.services import Running, ServiceError

_POLL_SECONDS = 0.2
_HTTP_SECONDS = 5.0
_REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class Health:
    """What a service says of itself; `state` is for people, e.g. ``loading``."""

    ready: bool
    state: str
    status: dict[str, Any]


def get_json(url: str, path: str) -> tuple[int, Any]:
    """(HTTP status, decoded body or None) of a GET.

    Raises:
        OSError: nobody answers.
    """
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_HTTP_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"not an HTTP service: {error!r}") from error
    finally:
        connection.close()
    try:
        return answer.status, json.loads(body)
    except ValueError:
        return answer.status, None


def health(url: str) -> Health:
    """The health of the service at `url`; a service that does not answer is starting."""
    try:
        ready = get_json(url, routes.READY)[0] == 200
        body = get_json(url, routes.STATUS)[1]
    except OSError:
        return Health(False, "starting", {})
    status = body if isinstance(body, dict) else {}
    return Health(ready, "ready" if ready else str(status.get("state", "starting")), status)


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
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when every service is ready.

    Raises:
        ServiceError: one ended, reported a failure, or took longer than `timeout_seconds`.
    """
    deadline = clock() + timeout_seconds
    states = {service.name: "starting" for service in services}
    try:
        while True:
            for service in services:
                if not service.alive():
                    raise ServiceError(_failure(service, "ended while starting"))
                now = health(service.url)
                if now.state == "failed":
                    raise ServiceError(_failure(service, "failed to start"))
                states[service.name] = now.state
            progress.show(states)
            if all(state == "ready" for state in states.values()):
                return
            if clock() > deadline:
                late = next(service for service in services if states[service.name] != "ready")
                raise ServiceError(_failure(late, f"was not ready after {timeout_seconds:.0f} s"))
            sleep(_POLL_SECONDS)
    finally:
        progress.close()


def _failure(service: Running, what: str) -> str:
    lines = "\n".join(f"    {line}" for line in service.log_tail())
    return f"{service.name} {what}; the end of {service.log}:\n{lines}"
