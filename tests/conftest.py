"""What must stand before any test module is imported, and what tests of several rooms share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from benchmarks.ports import free_port

if TYPE_CHECKING:  # tests of the gateway do without torch
    import torch
    from xdist.scheduler import LoadFileScheduling

    from tests.continuous_batching.reference import Reference

if shutil.which("nvidia-smi") is None:
    # Triton's kernels run in its interpreter; read when triton is imported, by whomever
    os.environ["TRITON_INTERPRET"] = "1"
# hundreds of processes start here: compiling every module anew takes each of them a third of a second
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if "PYTEST_XDIST_WORKER" in os.environ:
    # the workers share the cores: threads of torch that spin would keep each other waiting
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# a machine that is busy with other tests is slow: that is no failure
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


OWN_SERVICES = [f"tests/e2e/test_{name}.py" for name in ("readme", "fleet", "failed_starts")]
"""Files of that directory which start services of their own, and none that the others share."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """A worker takes a file at a time, but all those that share a stack: it is started once."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            shares = file.startswith("tests/e2e/") and file not in OWN_SERVICES
            return "tests/e2e" if shares else file

    return Scheduling(config, log)


def pytest_runtest_setup() -> None:
    from tests.interpreter import make_faster

    make_faster()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """A GPU where there is one: its kernels run in an interpreter on a CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def unused_tcp_port() -> int:
    """A port that nothing listens on, nor gets by chance."""
    return free_port()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random Llama with two query heads a key head."""
    from tests.checkpoints import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def reference(tiny_model: Path) -> Reference:
    """transformers on `tiny_model`."""
    from tests.continuous_batching.reference import Reference

    return Reference(tiny_model)
