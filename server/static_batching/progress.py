"""Whether the package that runs makes progress."""

from __future__ import annotations

from collections.abc import Callable

import torch

_CPU_SECONDS = 600.0
_GPU_SECONDS = 120.0
"""Far above what the longest step takes, the first one, in which the prompts of a whole package are read."""


def default_step_timeout(device: torch.device) -> float:
    """Seconds without a step that mean a stuck worker, where the configuration has none."""
    return _CPU_SECONDS if device.type == "cpu" else _GPU_SECONDS


class Progress:
    """The time of the last step; written on the worker's thread and read on the server's.

    Args:
        clock: monotonic seconds.

    Attributes:
        step_timeout: seconds that a step may take.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.step_timeout = float("inf")
        self._clock = clock
        self._last_step: float | None = None

    def step(self) -> None:
        """A package begins, or one of its steps is done."""
        self._last_step = self._clock()

    def idle(self) -> None:
        """No package runs."""
        self._last_step = None

    def problem(self) -> str | None:
        """What is wrong, in one line; None: nothing runs, or the last step is not long ago."""
        last = self._last_step
        seconds = 0.0 if last is None else self._clock() - last
        if seconds < self.step_timeout:
            return None
        return f"a package runs and has made no step for {seconds:.0f} s"
