"""One stack of three real services for all tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import Stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Gateway, continuous-batching and static-batching server on the demo model, ready."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    started = stack.start_app("--all")
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
