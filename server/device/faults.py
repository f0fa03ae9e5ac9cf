"""Whose fault it is that a request failed: its own, or that of the machine it ran on."""

from __future__ import annotations

import torch

_SIGNS_OF_THE_DEVICE = ("CUDA", "cuda", "can't allocate memory")
"""In the messages of errors for which torch has no type."""


def is_of_the_machine(error: BaseException) -> bool:
    """Whether `error`, raised by what was computed for one request alone, would have met any other.

    Everything else comes of what that request asked for: the same request fails on every server, and
    those beside it do not.
    """
    if isinstance(error, MemoryError | OSError | torch.OutOfMemoryError | torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS_OF_THE_DEVICE)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was lacking: of numpy's, of CUDA's, or of torch's on a CPU, which has no type for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
