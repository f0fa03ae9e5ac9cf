"""A graceful end: on SIGTERM, SIGINT or SIGHUP new work is refused, and what is in flight may finish."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class Drained(Protocol):
    """What is to end gracefully."""

    async def finish(self) -> None:
        """Refuse new work, and return when nothing is in flight any more."""

    async def cut_short(self) -> None:
        """End what is still in flight."""

    def drain_timeout(self) -> float:
        """Seconds that `finish` may take."""


class Drain:
    """Ends `drained`, on a signal or on call.

    The signal handlers stand in front of the HTTP server's own: the server goes when all is done. A
    second signal ends the wait.
    """

    def __init__(self, drained: Drained) -> None:
        self._drained = drained
        self._server_exits: dict[signal.Signals, Callable[[int, Any], Any]] = {}
        self._leaving: asyncio.Task[None] | None = None
        self._patience: asyncio.Timeout | None = None
        self._hurried = False

    @property
    def begun(self) -> bool:
        """Whether a signal came."""
        return self._leaving is not None

    def take_signals(self) -> None:
        """Listen from now on; without effect outside the main thread, where no signals arrive."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            server_exit = signal.getsignal(number)
            if callable(server_exit):
                self._server_exits[number] = server_exit
                loop.add_signal_handler(number, self._on_signal, number)
        # the terminal was closed; under nohup and gunicorn that is ignored, and stays so
        if signal.SIGTERM in self._server_exits and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            loop.add_signal_handler(signal.SIGHUP, self._on_signal, signal.SIGTERM)

    async def run(self) -> None:
        """Drain, for as long as that may take."""
        self._patience = asyncio.timeout(0.0 if self._hurried else self._drained.drain_timeout())
        try:
            async with self._patience:
                await self._drained.finish()
        except TimeoutError:
            logger.warning("draining ended with requests still in flight")
            # they fail now: the HTTP server goes only when all of them have been answered
            await self._drained.cut_short()
        finally:
            self._patience = None

    def _on_signal(self, number: signal.Signals) -> None:
        if self._leaving is None:
            logger.info("draining on %s; once more to end at once", number.name)
            self._leaving = asyncio.create_task(self._leave(number))
            return
        self._hurried = True
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(0.0)

    async def _leave(self, number: signal.Signals) -> None:
        try:
            await self.run()
        except Exception:
            logger.exception("draining failed; the server ends at once")
        finally:
            try:
                self._give_signals_back()  # on its way out the server raises this one again
            finally:
                self._server_exits[number](number, None)

    def _give_signals_back(self) -> None:
        loop = asyncio.get_running_loop()
        for number, server_exit in self._server_exits.items():
            loop.remove_signal_handler(number)
            signal.signal(number, server_exit)
