from __future__ import annotations

from pathlib import Path

import pytest

from server.static_batching import worker as worker_module
from server.static_batching.config import WorkerConfig
from server.static_batching.model import LoadedModel, load_model
from tests.checkpoints import tiny_llama
from tests.static_batching.packages import Packages


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with grouped-query attention, float32."""
    return tiny_llama(tmp_path_factory.mktemp("llama"), max_position_embeddings=256)


@pytest.fixture(scope="session")
def model(llama: Path) -> LoadedModel:
    return load_model(WorkerConfig(model_name_or_path=str(llama), device="cpu"))


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Packages:
    spy = Packages()
    monkeypatch.setattr(worker_module, "generate", spy)
    return spy
