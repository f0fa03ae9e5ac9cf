"""How many threads compute, and how long they spin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.continuous_batching.environment import engine_environment
from server.static_batching.config import WorkerConfig
from server.static_batching.model import load_model
from tests.checkpoints import tiny_llama
from utils.options import SbServerAppOptions
from utils.services import Service


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_the_configuration_sets_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    load_model(WorkerConfig(model_name_or_path=str(tiny_llama(tmp_path)), device="cpu", num_threads=threads))
    assert seen == ([] if threads is None else [threads])


def test_threads_of_a_started_service_do_not_spin_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of the engine do not."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    service = Service("sb_server_app", "static_batching_server_app", SbServerAppOptions())
    assert service.variables()["GOMP_SPINCOUNT"] == engine_environment({})["GOMP_SPINCOUNT"]
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert service.variables()["GOMP_SPINCOUNT"] == "7"
