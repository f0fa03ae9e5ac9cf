"""What Python's garbage collector has to look at in a process that serves."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Import what stays for good: collections meanwhile would find nothing, and take a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def tame_collector() -> None:
    """Freeze long-lived objects (`gc.freeze`) and make collections rarer.

    Its full runs over all loaded modules take tens of milliseconds: what the slowest requests and streams
    wait for, and a GPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
