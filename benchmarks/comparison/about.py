"""What a comparison's figures belong to: model, code, versions, machine."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
from pathlib import Path

from benchmarks.machine import processor
from benchmarks.processes import ROOT
from protocol import __version__
from server.checkpoints.errors import ModelError
from server.checkpoints.files import find_weights, read_headers

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_BUSY = 0.25
"""Running processes for each core above which the machine is not idle."""
_PACKAGES = ("torch", "transformers", "tokenizers")


def model_facts(path: Path) -> list[tuple[str, str]]:
    """The model's name and how large it is."""
    return [("model", path.name if path.name != "checkpoint" else path.parent.name), ("size", _size(path))]


def _size(path: Path) -> str:
    """Parameters, where the weights are floats, and bytes of the files."""
    files = (
        [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.bin"), *path.glob("*.gguf")]
    )
    size = f"{sum(file.stat().st_size for file in files) / 1e6:,.0f} MB"
    try:
        tensors = read_headers(find_weights(path)).values()
    except ModelError:
        return size
    if any(tensor.dtype not in _FLOATS for tensor in tensors):
        return f"{size}, quantized"
    return f"{sum(math.prod(tensor.shape) for tensor in tensors) / 1e6:,.1f} million parameters, {size}"


def commit() -> str:
    """The commit that runs, and whether files differ from it."""
    if shutil.which("git") is None:
        return "unknown: git is not installed"
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty= with changes", "--exclude=*", "--abbrev=12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return found.stdout.strip() or "unknown: not a git checkout"


def versions() -> str:
    """This project's version and those of what it computes with."""
    packages = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    return ", ".join([f"stack {__version__}", f"Python {platform.python_version()}", *packages])


def machine() -> str:
    """Processor, cores, memory, GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ", ".join([processor(), f"{cores} cores", f"{memory:.0f} GiB", *_gpus()])


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    found = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
    )
    return found.stdout.strip().splitlines()


def load_before() -> str:
    """How busy the machine is with other work, in words."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    busy = "; other work was running, and the figures are of both" if load > _BUSY * cores else ""
    return f"{load:.2f} on {cores} cores{busy}"
