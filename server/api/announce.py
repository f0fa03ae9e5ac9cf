"""Tells a gateway that a server came up and that it is about to go (``/event/*``)."""

from __future__ import annotations

import asyncio
import logging

import aiohttp

from protocol import routes
from protocol.events import ServerEvent

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5
_TIMEOUT = 5.0


class GatewayAnnouncer:
    """Announces a server to a gateway, again and again: a gateway that starts later, or anew, learns
    of it too.

    Args:
        gateway: URL of the gateway.
        event: the server.
        token: secret that the gateway asks of servers.
        interval: seconds between announcements; after a failure less at first, then as many.
    """

    def __init__(self, gateway: str, event: ServerEvent, token: str | None, interval: float = 30.0) -> None:
        self._gateway = gateway.rstrip("/")
        self._body = event.model_dump_json()
        self._headers = {"content-type": "application/json"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        self._interval = interval
        self._announcing: asyncio.Task[None] | None = None

    async def started(self) -> None:
        """Announce the start, in the background from now on."""
        self._announcing = asyncio.create_task(self._keep_announcing())

    async def stopping(self) -> None:
        """Announce the end, once."""
        if self._announcing is None:
            return
        self._announcing.cancel()
        problem = await self._post(routes.EVENT_SERVER_SHUTDOWN)
        if problem is not None:
            logger.warning("the gateway %s was not told of the shutdown: %s", self._gateway, problem)

    async def _keep_announcing(self) -> None:
        told, pause = None, _FIRST_PAUSE
        while True:
            problem = await self._post(routes.EVENT_SERVER_STARTUP)
            outcome = problem or "accepted"
            if outcome != told:  # each change once, not every time
                level = logging.INFO if problem is None else logging.WARNING
                logger.log(level, "announced to the gateway %s: %s", self._gateway, outcome)
            told = outcome
            pause = min(2 * pause, self._interval) if problem else self._interval
            await asyncio.sleep(pause)

    async def _post(self, route: str) -> str | None:
        """None where the gateway accepted, otherwise why not."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_TIMEOUT)) as http,
                http.post(self._gateway + route, data=self._body, headers=self._headers) as response,
            ):
                if response.status < 300:
                    return None
                return f"status {response.status}: {(await response.text())[:200]}"
        except (aiohttp.ClientError, TimeoutError) as error:
            return str(error) or type(error).__name__
