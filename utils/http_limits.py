"""What the HTTP server of every service takes from one client."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import Any

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
