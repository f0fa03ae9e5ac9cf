"""A graceful end: on SIGTERM or SIGINT new requests are refused, those in flight may finish."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.05


class Drain:
    """Puts draining in front of the HTTP server's own signal handlers.

    Args:
        begin: called once, to refuse new requests.
        idle: whether nothing is in flight.
        timeout: gives the seconds after which the server stops whatever is in flight.
    """

    def __init__(
        self, begin: Callable[[], None], idle: Callable[[], bool], timeout: Callable[[], float]
    ) -> None:
        self._begin = begin
        self._idle = idle
        self._timeout = timeout
        self._waiting: asyncio.Task[None] | None = None

    def take_signals(self) -> None:
        """Listen from now on; without effect outside the main thread, where no signals arrive."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            server_exit = signal.getsignal(number)
            if callable(server_exit):
                loop.add_signal_handler(number, self._on_signal, number, server_exit)

    def _on_signal(self, number: signal.Signals, server_exit: Callable[[int, Any], Any]) -> None:
        if self._waiting is not None:  # asked twice: now
            self._waiting.cancel()
            server_exit(number, None)
            return
        logger.info("draining on %s", number.name)
        self._begin()
        self._waiting = asyncio.create_task(self._wait())
        self._waiting.add_done_callback(lambda _: server_exit(number, None))

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._timeout()):
                while not self._idle():  # noqa: ASYNC110  # several kinds of work, no one event
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            logger.warning("requests were still in flight after %g s of draining", self._timeout())
