"""How threads share Python's interpreter in a process that serves."""

from __future__ import annotations

import sys

SWITCH_SECONDS = 0.0005


def share_interpreter() -> None:
    """Let a thread that waits for the interpreter have it after half a millisecond instead of five.

    The event loop and the step loop give the interpreter away many times a millisecond. Where another thread
    works on a large request, each of them would wait five milliseconds to get it back, and a stream for all.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
