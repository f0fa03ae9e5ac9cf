"""What a run's figures belong to."""

from __future__ import annotations

import datetime
import importlib.metadata

import torch


def versions(*more: str) -> dict[str, str]:
    """Date, GPU, CUDA and packages, `more` of them where they are installed."""
    found = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda or "",
    }
    for name in ("torch", "triton", *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
