"""Loading in the background, draining on a signal, closing: the life of a server's service."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any, Protocol

from server.api.service import Service

logger = logging.getLogger(__name__)

ServerExit = Callable[[int, FrameType | None], Any]
"""An HTTP server's own handler of a signal."""


class Announcer(Protocol):
    """Tells somebody that the service came up or is about to go; never raises."""

    async def started(self) -> None: ...

    async def stopping(self) -> None: ...


class Lifecycle:
    """Starts a service when its app starts, so that the app answers while the model loads.

    Args:
        service: what is started and closed.
        on_ready: called when the service can answer.
        on_failure: called, once the service is closed, where it cannot start.
        announcer: told of start and drain.
        drain_on_signals: on the first SIGTERM or SIGINT keep answering (new work with 503) until
            accepted work is done, and only then let the HTTP server go; a second one ends the wait.
        drain_timeout: seconds after which what is left fails with 503.
    """

    def __init__(
        self,
        service: Service,
        *,
        on_ready: Callable[[], None] | None = None,
        on_failure: Callable[[], None] | None = None,
        announcer: Announcer | None = None,
        drain_on_signals: bool = False,
        drain_timeout: float = 55.0,
    ) -> None:
        self._service = service
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._announcer = announcer
        self._drain_on_signals = drain_on_signals
        self._drain_timeout = drain_timeout
        self._draining: asyncio.Task[None] | None = None
        self._patience: asyncio.Timeout | None = None
        self._server_exits: dict[signal.Signals, ServerExit] = {}

    @asynccontextmanager
    async def run(self, _app: object = None) -> AsyncIterator[None]:
        """The lifespan of an app."""
        if self._drain_on_signals and threading.current_thread() is threading.main_thread():
            self._take_signals()
        loading = asyncio.create_task(self._load())
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            if self._draining is None:
                await self._drain()
            await self._service.close()

    async def _load(self) -> None:
        try:
            await self._service.start()
        except Exception as error:
            logger.error("%s cannot be served: %s", self._service.model_id, _one_line(error))
            logger.debug("the failure in full", exc_info=error)
            await self._service.close()
            if self._on_failure is not None:
                self._on_failure()
            return
        logger.info("%s is ready", self._service.model_id)
        if self._on_ready is not None:
            self._on_ready()
        if self._announcer is not None:
            await self._announcer.started()

    async def _drain(self) -> None:
        if self._announcer is not None:
            await self._announcer.stopping()
        try:
            self._patience = asyncio.timeout(self._drain_timeout)
            async with self._patience:
                await self._service.drain()
        except TimeoutError:
            logger.warning("draining ended with requests still running")
            # they fail now: the HTTP server goes only when all of them have been answered
            await self._service.close()

    def _take_signals(self) -> None:
        """Put draining in front of the HTTP server's own signal handlers."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            server_exit = signal.getsignal(number)
            if callable(server_exit):
                self._server_exits[number] = server_exit
                loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._draining is None:
            logger.info("draining on %s", number.name)
            self._draining = asyncio.create_task(self._leave(number))
        elif self._patience is not None and not self._patience.expired():
            self._patience.reschedule(0.0)

    async def _leave(self, number: signal.Signals) -> None:
        try:
            await self._drain()
        finally:
            # give the signals back first: on its way out the server raises this one again
            loop = asyncio.get_running_loop()
            for taken, server_exit in self._server_exits.items():
                loop.remove_signal_handler(taken)
                signal.signal(taken, server_exit)
            self._server_exits[number](number, None)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
