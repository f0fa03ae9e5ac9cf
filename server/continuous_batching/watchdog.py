"""Tells an engine that is stuck from one that works or waits for work."""

from __future__ import annotations

import os

from server.continuous_batching import messages

TICK_SECONDS = 1.0
STOPPED_SECONDS = 10.0
"""How long a process may be stopped by a signal: no step takes it there, and nothing brings it back."""
_CPU_SECONDS = 300.0
_GPU_SECONDS = 60.0
"""Far above what a step takes with the largest prompt chunk on slow hardware."""


def default_step_timeout(device: str) -> float:
    """Seconds without a step that mean a stuck engine on `device`, where the configuration has none."""
    return _CPU_SECONDS if device == "cpu" else _GPU_SECONDS


class Watchdog:
    """Counts the seconds without progress of one engine process.

    It counts ticks, not time: where both processes were suspended together, the engine is not to blame.

    Attributes:
        step_timeout: seconds without progress while there is work; None while the engine loads.
    """

    def __init__(self) -> None:
        self.step_timeout: float | None = None
        self._idle_for = 0.0
        self._stopped_for = 0.0
        self._steps = -1

    def heard(self, report: messages.Report) -> None:
        """Take a report; one without a step or an answer is not progress."""
        steps = self._steps if report.stats is None else report.stats.steps
        if report.output or steps != self._steps:
            self._idle_for = 0.0
        self._steps = steps

    def tick(self, seconds: float, *, has_work: bool, stopped: bool) -> str | None:
        """Count `seconds` more; returns what is wrong, once it is certain.

        Args:
            has_work: whether any request waits for the engine.
            stopped: whether the process is stopped by a signal.
        """
        seconds = min(seconds, 2 * TICK_SECONDS)
        self._idle_for = self._idle_for + seconds if has_work else 0.0
        self._stopped_for = self._stopped_for + seconds if stopped else 0.0
        if self._stopped_for >= STOPPED_SECONDS:
            return f"the engine process has been stopped by a signal for {self._stopped_for:.0f} s"
        if self.step_timeout is not None and self._idle_for >= self.step_timeout:
            return f"the engine has work and has made no step for {self._idle_for:.0f} s"
        return None


def is_stopped(pid: int) -> bool:
    """Whether a child of this process is stopped by a signal (SIGSTOP); False where it cannot be known."""
    if not hasattr(os, "waitid"):
        return False
    try:
        # WNOWAIT leaves the state to be seen again, and the end of the process to asyncio
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
