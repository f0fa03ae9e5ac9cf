"""A GPU's context that is made while torch is imported."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest

from server.device.cuda_context import create_context


class Driver:
    """A fake CUDA driver with `gpus` GPUs; `called` records the calls."""

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self.called: list[str] = []

    def cuInit(self, flags: int) -> int:
        self.called.append("cuInit")
        return 0

    def cuDeviceGet(self, device: object, ordinal: int) -> int:
        self.called.append(f"cuDeviceGet {ordinal}")
        return 0 if self.gpus else 100

    def cuDevicePrimaryCtxRetain(self, context: object, device: ctypes.c_int) -> int:
        self.called.append("cuDevicePrimaryCtxRetain")
        return 0


@pytest.fixture
def torch_with_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a torch that was built for CUDA has its library."""
    library = tmp_path / "lib" / "libtorch_cuda.so"
    library.parent.mkdir()
    library.touch()
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    return library


@pytest.mark.parametrize("gpus", [0, 1])
def test_the_first_gpu_has_one(gpus: int, torch_with_cuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(gpus)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert create_context() == bool(gpus)
    assert driver.called == ["cuInit", "cuDeviceGet 0", *["cuDevicePrimaryCtxRetain"] * gpus]


def test_a_torch_without_cuda_needs_none(torch_with_cuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(1)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    torch_with_cuda.unlink()
    assert not create_context() and not driver.called


def test_a_machine_without_a_driver(torch_with_cuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not create_context()
