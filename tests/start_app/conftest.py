"""Directories, ports and services of its own for every test."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.ports import free_port
from utils.launch import start_services
from utils.manage import stop_services
from utils.options import CONFIGS, ClientAppOptions
from utils.running import Directories
from utils.services import Service

GUNICORN_CONFIG = CONFIGS / "gunicorn_config.py"

Fake = Callable[..., Service]


@pytest.fixture
def directories(tmp_path: Path) -> Iterator[Directories]:
    """Where a test keeps its pid files and logs; what it left running is stopped."""
    directories = Directories(tmp_path / "run", tmp_path / "logs")
    yield directories
    stop_services(directories)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Service]:
    """Make a service that behaves as told (see `fake_service`)."""

    def make(mode: str = "", kind: str = "client_app", port: int | None = None) -> Service:
        monkeypatch.setenv("FAKE_SERVICE", mode)
        options = ClientAppOptions(port=port or free_port(), debug=True)
        return Service(kind, "tests.start_app.fake_service", options)

    return make


def start_all(directories: Directories, *chosen: Service, timeout_seconds: float = 60) -> str:
    """Start services as `start_app.py` does; returns what it showed."""
    output = io.StringIO()
    start_services(
        chosen,
        gunicorn_config=GUNICORN_CONFIG,
        directories=directories,
        timeout_seconds=timeout_seconds,
        output=output,
    )
    return output.getvalue()
