"""Variables of the engine process that must be set before it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_DEFAULTS = {
    # Between two steps the threads that compute spin for about a millisecond, then sleep: long enough
    # that a step finds them awake, short enough that the HTTP side gets the processor when it is
    # its turn. (libgomp's own default is some twenty milliseconds, and to sleep at once is slow.)
    "GOMP_SPINCOUNT": "20000",
    # glibc's malloc keeps what is freed: torch allocates and frees the same large buffers every
    # step, and each time the system would take the pages, and give and clear them again.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def engine_environment(parent: Mapping[str, str]) -> dict[str, str]:
    """The variables of `parent` and, where it does not set them, the engine's own; modules are found from
    anywhere."""
    paths = filter(None, (str(_ROOT), parent.get("PYTHONPATH")))
    return _DEFAULTS | dict(parent) | {"PYTHONPATH": os.pathsep.join(paths)}
