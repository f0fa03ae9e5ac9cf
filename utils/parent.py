"""A process that does not outlive the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def signal_at_parent_death(parent: int, number: signal.Signals) -> None:
    """Have the kernel send `number` to this process when its parent dies, however it dies; Linux only.

    It reaches a process in any state: one that computes, waits in a driver, or is stopped. What counts as
    the parent is the thread that started this process.

    Args:
        parent: process id of the parent; if it is dead already, the signal is sent at once.
    """
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
