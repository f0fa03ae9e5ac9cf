from __future__ import annotations

from pathlib import Path

import pytest

from server.static_batching.config import WorkerConfig
from server.static_batching.model import LoadedModel, load_model
from tests.models import tiny_llama


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with grouped-query attention, float32."""
    return tiny_llama(tmp_path_factory.mktemp("llama"), max_position_embeddings=256)


@pytest.fixture(scope="session")
def model(llama: Path) -> LoadedModel:
    return load_model(WorkerConfig(model_name_or_path=str(llama), device="cpu"))
