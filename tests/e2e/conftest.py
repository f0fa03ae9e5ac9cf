"""One stack of three real services for all tests of this directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import Stack
from utils.config import read_file
from utils.options import CONFIGS


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Gateway, continuous-batching and static-batching server on the demo model, ready."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    # a server that was killed is waited for in vain, and shortly
    config = read_file(CONFIGS / "client_config.json") | {"replica_wait_seconds": 2}
    path = stack.directory / "client.json"
    path.write_text(json.dumps(config))
    started = stack.start_app("--all", "--client_config_file_path", str(path))
    try:
        assert started.code == 0, started.errors
        yield stack
    finally:
        stopped = stack.start_app("--stop")
    assert stopped.code == 0, stopped.errors + stack.logs()


@pytest.fixture
def empty_stack(tmp_path: Path) -> Iterator[Stack]:
    """Directories and ports with nothing started; what a test starts is stopped after it."""
    stack = Stack(tmp_path)
    yield stack
    stack.start_app("--stop")
