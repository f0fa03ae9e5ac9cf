"""What `start_app.py --fleet` does: starts what does not run, or restarts one service after the other."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from protocol import routes
from utils.launch import report_joins, start_services
from utils.manage import stop_services
from utils.readiness import get_json
from utils.running import GATEWAY, Directories, Running, find
from utils.services import Service, check_startable

_GATEWAY_SECONDS = 60.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Launch:
    """How services are started.

    Attributes:
        gunicorn_config: of all apps.
        directories: for pid files and logs.
        timeout_seconds: after which one that is not ready is given up.
        gateway: the one whose view of a restarted server counts; None: it runs elsewhere.
        gateway_key: that it asks for, if it does.
        output: where progress is shown.
    """

    gunicorn_config: Path
    directories: Directories
    timeout_seconds: float
    gateway: Service | None = None
    gateway_key: str | None = None
    output: TextIO = sys.stderr

    def start(self, services: Sequence[Service]) -> list[Running]:
        """Start those of `services` that do not run, all or none; what runs is left as it is.

        Raises:
            ConfigError, ServiceError: one could not be started.
        """
        alive = {running.name for running in find(self.directories) if running.alive()}
        missing = [service for service in services if service.name not in alive]
        for service in services:
            if service not in missing:
                print(f"{service.name} runs already and is left as it is", file=self.output)
        check_startable(missing, self.directories)
        return start_services(
            missing,
            gunicorn_config=self.gunicorn_config,
            directories=self.directories,
            timeout_seconds=self.timeout_seconds,
            output=self.output,
        )

    def restart(self, services: Sequence[Service]) -> int:
        """Restart `services` one after the other, the next when the gateway gives work to the last.

        Returns:
            0, or 1 where one had to be killed or its gateway did not take it back.

        Raises:
            ConfigError, ServiceError: one could not be started again; those after it were not touched.
        """
        status = 0
        for service in services:
            if any(running.name == service.name for running in find(self.directories)):
                status |= stop_services(self.directories, self.output, names=[service.name])
            started = self.start([service])
            status |= report_joins(started, self.output)
            if service.kind != GATEWAY and not self._is_used(service):
                status = 1
                print(f"the gateway does not use {service.name} yet; its /status says why", file=self.output)
        return status

    def _is_used(self, service: Service) -> bool:
        """Whether the gateway gives `service` work, within a minute; True where there is no gateway here."""
        names = {running.name for running in find(self.directories) if running.alive()}
        if self.gateway is None or self.gateway.name not in names:
            return True
        deadline = time.monotonic() + _GATEWAY_SECONDS
        while time.monotonic() < deadline:
            try:
                replicas = get_json(self.gateway.url, routes.STATUS, self.gateway_key)[1]["replicas"]
                if any(each["url"] == service.url and each["state"] == "ready" for each in replicas):
                    return True
            except (OSError, LookupError, TypeError):  # it does not answer now
                pass
            time.sleep(_POLL_SECONDS)
        return False
