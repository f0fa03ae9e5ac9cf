"""How many threads compute, and how long they spin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize(("given", "used"), [(None, "1000"), ("7", "7")])
@pytest.mark.parametrize("started", [True, False])
def test_threads_of_the_server_sleep_soon(
    started: bool, given: str | None, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started by `start_app.py` or by itself, unless the variable is set already."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if given is not None:
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
    service = Service("sb_server_app", "static_batching_server_app", SbServerAppOptions())
    environment = service.variables() if started else dict(os.environ)
    told = subprocess.run(
        [sys.executable, "-c", _TOLD], env=environment, check=True, capture_output=True, text=True
    )
    assert told.stdout.strip() == used
