"""Tells a gateway that a server came up and that it is about to go (``/event/*``)."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
from pydantic import ValidationError

from protocol import routes
from protocol.errors import ErrorResponse
from protocol.events import EventAccepted, ServerEvent
from protocol.status import Announcement, AnnouncementState
from utils.background import repeat

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5
_TIMEOUT = 5.0
_NO_TOKEN = "it has no event_token, so it works with this server only if its configuration lists it"
_ANSWER_BYTES = 4096
"""How much of an answer is read: that of a gateway is shorter."""


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
        self._server = event.url
        self._body = event.model_dump_json()
        self._headers = {"content-type": "application/json"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        self._interval = interval
        self._announcing: asyncio.Task[None] | None = None
        self._pause = _FIRST_PAUSE
        self.announcement = self._outcome("pending")
        """What became of it, for ``/status``."""

    async def started(self) -> None:
        """Announce the start, in the background from now on."""
        name = f"announcing to the gateway {self._gateway}"
        self._announcing = asyncio.create_task(repeat(name, self._announce))

    async def stopping(self) -> None:
        """Announce the end, once; whatever comes of it, the server's own end goes on."""
        if self._announcing is None:
            return
        self._announcing.cancel()
        try:
            problem = (await self._post(routes.EVENT_SERVER_SHUTDOWN)).problem
        except Exception as error:
            logger.exception("announcing the shutdown to the gateway %s failed", self._gateway)
            problem = type(error).__name__
        if problem is not None:
            logger.warning("the gateway %s was not told of the shutdown: %s", self._gateway, problem)

    async def _announce(self) -> None:
        answer = await self._post(routes.EVENT_SERVER_STARTUP)
        if answer != self.announcement:  # each change once, not every time
            level = logging.INFO if answer.problem is None else logging.WARNING
            outcome = answer.problem or answer.state
            logger.log(level, "announced to the gateway %s: %s", self._gateway, outcome)
        self.announcement = answer
        self._pause = min(2 * self._pause, self._interval) if answer.problem else self._interval
        await asyncio.sleep(self._pause)

    async def _post(self, route: str) -> Announcement:
        """What the gateway says to the event."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_TIMEOUT)) as http,
                http.post(
                    self._gateway + route, data=self._body, headers=self._headers, allow_redirects=False
                ) as response,
            ):
                body = await response.content.read(_ANSWER_BYTES)
                return self._judge(response.status, body.decode(errors="replace"))
        except (aiohttp.ClientError, OSError, UnicodeError) as error:  # the last: no name of a host
            return self._outcome("failed", str(error) or type(error).__name__)

    def _judge(self, status: int, body: str) -> Announcement:
        """What an answer of the gateway means."""
        try:
            if status < 300 and (said := EventAccepted.model_validate_json(body)).accepted:
                return self._outcome("accepted") if said.trusted else self._outcome("unconfirmed", _NO_TOKEN)
            problem = ErrorResponse.model_validate_json(body).error.message
        except ValidationError:  # some other service, or a proxy
            problem = f"not the answer of a gateway: {body[:200]!r}"
        return self._outcome("failed" if status >= 500 else "refused", f"status {status}: {problem}")

    def _outcome(self, state: AnnouncementState, problem: str | None = None) -> Announcement:
        return Announcement(gateway=self._gateway, server=self._server, state=state, problem=problem)
