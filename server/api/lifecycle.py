"""Loading in the background, draining on a signal, closing: the life of a server's service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from protocol.status import Announcement
from server.api.service import Service
from utils.drain import Drain
from utils.messages import one_line

logger = logging.getLogger(__name__)


class Announcer(Protocol):
    """Called when the service came up or is about to go; never raises."""

    @property
    def announcement(self) -> Announcement: ...

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
        self._drain = Drain(self)

    @property
    def announcement(self) -> Announcement | None:
        """What became of announcing the service, where it is announced."""
        return None if self._announcer is None else self._announcer.announcement

    @asynccontextmanager
    async def run(self, _app: object = None) -> AsyncIterator[None]:
        """The lifespan of an app."""
        if self._drain_on_signals:
            self._drain.take_signals()
        loading = asyncio.create_task(self._load())
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            if not self._drain.begun:
                await self._drain.run()
            await self._service.close()

    async def _load(self) -> None:
        try:
            await self._service.start()
            if self._on_ready is not None:
                self._on_ready()
        except Exception as error:
            logger.error("%s cannot be served: %s", self._service.model_id, one_line(error))
            logger.debug("the failure in full", exc_info=error)
            await self._service.close()
            if self._on_failure is not None:
                self._on_failure()
            return
        logger.info("%s is ready", self._service.model_id)
        if self._announcer is not None:
            await self._announcer.started()

    # the end, see `utils.drain.Drained`

    async def finish(self) -> None:
        if self._announcer is not None:
            await self._announcer.stopping()
        await self._service.drain()

    async def cut_short(self) -> None:
        await self._service.close()

    def drain_timeout(self) -> float:
        return self._drain_timeout
