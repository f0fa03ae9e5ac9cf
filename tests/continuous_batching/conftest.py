"""Models for the engine's tests: tiny, random, with grouped-query attention."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.continuous_batching.reference import Reference
from tests.models import tiny_llama


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random Llama with two query heads a key head."""
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def reference(tiny_model: Path) -> Reference:
    return Reference(tiny_model)
