"""Ends what Python code computes for one request once it has taken too long."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class _Worker(Generic[Result]):
    """A call of `function` in a thread, into which an exception can be thrown while it runs."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._thread: int | None = None  # that of the call, while it runs

    def run(self) -> Result:
        with self._lock:
            self._thread = threading.get_ident()
        try:
            return self._function()
        finally:
            with self._lock:
                self._thread = None

    def interrupt(self) -> None:
        """Raise TimeoutError in the call at its next Python instruction, if it still runs."""
        with self._lock:
            if self._thread is not None:
                thread, error = ctypes.c_ulong(self._thread), ctypes.py_object(TimeoutError)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, error)


async def run_within(seconds: float, function: Callable[[], Result]) -> Result:
    """What `function` returns, called in a thread; the event loop stays free.

    Raises:
        TimeoutError: it took longer, and was ended.
    """
    worker = _Worker(function)
    timer = asyncio.get_running_loop().call_later(seconds, worker.interrupt)
    try:
        return await asyncio.to_thread(worker.run)
    finally:
        timer.cancel()
