"""How threads share Python's interpreter in a process that serves."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")

SWITCH_SECONDS = 0.0005
NICENESS = 10
"""Of threads that give way: a tenth of the weight of others."""


def share_interpreter() -> None:
    """Let a thread that waits for the interpreter have it after half a millisecond instead of five.

    The event loop and the step loop give the interpreter away many times a millisecond. Where another thread
    works on a large request, each of them would wait five milliseconds to get it back, and a stream for all.
    """
    sys.setswitchinterval(SWITCH_SECONDS)


def give_way() -> None:
    """Let other threads have the processor before this one, where the system tells threads apart.

    For long work outside the interpreter. A thread that needs the interpreter often would hold it while it
    waits for the processor, and keep it from all others.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


_long_work = ThreadPoolExecutor(1, "long work")


async def in_turn(function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
    """What `function` makes, on the one thread for long work that needs the interpreter.

    Several such threads would hand it to each other, and the event loop would wait for each of them in turn.
    """
    call = functools.partial(function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_long_work, call)
