"""How many threads compute, and how long they spin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from server.continuous_batching.environment import engine_environment
from server.static_batching.config import WorkerConfig
from server.static_batching.model import load_model
from tests.checkpoints import tiny_llama
from utils.options import SbServerAppOptions
from utils.services import Service

_TOLD = """
import os, sys
import server.static_batching
assert "torch" not in sys.modules
print(os.environ["GOMP_SPINCOUNT"])
"""


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


@pytest.mark.parametrize(("given", "used"), [(None, "1000"), ("7", "7")])
def test_threads_of_a_server_started_by_itself_sleep_sooner(given: str | None, used: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if given is not None:
        environment["GOMP_SPINCOUNT"] = given
    told = subprocess.run(
        [sys.executable, "-c", _TOLD], env=environment, check=True, capture_output=True, text=True
    )
    assert told.stdout.strip() == used
