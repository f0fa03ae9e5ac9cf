"""A graceful end: on SIGTERM or SIGINT new requests are refused, those in flight may finish."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from typing import Any, Protocol

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.05


class Drained(Protocol):
    """What is to end gracefully."""

    def begin_drain(self) -> None:
        """Refuse new requests."""

    def idle(self) -> bool:
        """Whether nothing is in flight."""

    def cut_short(self) -> None:
        """End what is in flight."""

    def drain_timeout(self) -> float:
        """Seconds until that has to be done."""


class Drain:
    """Puts draining in front of the HTTP server's own signal handlers."""

    def __init__(self, drained: Drained) -> None:
        self._drained = drained
        self._server_exits: dict[signal.Signals, Callable[[int, Any], Any]] = {}
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

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

    def _on_signal(self, number: signal.Signals) -> None:
        if self._task is not None:
            self._hurry.set()
            return
        logger.info("draining on %s; once more to end at once", number.name)
        self._task = asyncio.create_task(self._leave(number))

    async def _leave(self, number: signal.Signals) -> None:
        try:
            await self._drain()
        finally:
            self._give_signals_back()  # on its way out the server raises this one again
            self._server_exits[number](number, None)

    def _give_signals_back(self) -> None:
        loop = asyncio.get_running_loop()
        for number, server_exit in self._server_exits.items():
            loop.remove_signal_handler(number)
            signal.signal(number, server_exit)

    async def _drain(self) -> None:
        drained = self._drained
        drained.begin_drain()
        try:
            async with asyncio.timeout(drained.drain_timeout()):
                while not drained.idle() and not self._hurry.is_set():  # noqa: ASYNC110  # two conditions
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            logger.warning("requests were still in flight after %g s of draining", drained.drain_timeout())
        drained.cut_short()
