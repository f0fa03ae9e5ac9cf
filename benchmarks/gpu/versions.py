"""What a run's figures belong to."""

from __future__ import annotations

import importlib.metadata

import torch

from benchmarks.machine import today


def versions(*more: str) -> dict[str, str]:
    """Date, GPU, CUDA and packages, `more` of them where they are installed."""
    found = {
        "date": today(),
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda or "",
    }
    for name in ("torch", "triton", *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
