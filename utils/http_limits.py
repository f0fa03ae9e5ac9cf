"""What the HTTP server of every service takes from one client."""

from __future__ import annotations

import logging
import resource
import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

HEAD_BYTES = 2**16
"""The longest head of a request: request line and header fields."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Those that gunicorn's configuration sets, under its names; the defaults are the shipped ones."""

    limit_request_line: int = 8190
    """Bytes of the request target; more get 414."""
    limit_request_fields: int = 100
    """Header fields; more get 431."""
    limit_request_field_size: int = 2**15
    """Bytes of one header field, its name included; more get 431."""
    worker_connections: int = 8192
    """Open connections; where there are more, some that wait for a request are closed."""

    @classmethod
    def of(cls, settings: Any) -> HttpLimits:
        """The limits in gunicorn's `settings`, where 0 means none."""
        return cls(**{name: getattr(settings, name) or sys.maxsize for name in cls.__slots__})

    @property
    def connections(self) -> int:
        """`worker_connections`, or fewer where the process may not open as many files: a gateway
        needs two for a request."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return self.worker_connections if soft < 0 else min(self.worker_connections, max(1, soft // 2))


def allow_open_files() -> None:
    """Raise this process's limit of open files as far as it may: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def make_room(connections: Any, limit: int) -> None:
    """Close the sixteenth of `limit` connections that have waited longest for a request, of the address
    that has most of them waiting. Behind a proxy all have one address, and only age counts."""
    waiting: dict[str | None, list[Any]] = defaultdict(list)
    for connection in connections:
        if connection.waits:
            waiting[connection.client and connection.client[0]].append(connection)
    most = max(waiting.values(), key=len, default=[])
    most.sort(key=lambda connection: connection.waiting_since)
    for connection in most[: max(1, limit // 16)]:
        connections.discard(connection)  # it learns of its loss only in the loop's next turn
        connection.transport.abort()
    if most:
        logger.warning("more than %d connections: some that wait for a request were closed", limit)
