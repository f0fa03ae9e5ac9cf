"""What Python's garbage collector has to look at in a process that serves."""

from __future__ import annotations

import gc


def tame_collector() -> None:
    """Freeze long-lived objects (`gc.freeze`) and make collections rarer.

    Its full runs over all loaded modules take tens of milliseconds: what the slowest requests and streams
    wait for, and a GPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
