"""The clocks of the requests in flight.

Arming a timer for every wait of every request is what a relay spends much of its time on. Here
each request only notes what it waits for and since when; one task looks over all of them four
times a second, and gives up those that have waited too long or whose client has gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)

TICK = 0.25
"""Seconds between two looks; limits are kept to this precision."""

Receive = Callable[[], Awaitable[Any]]


class ClientGone(Exception):
    """The client closed its connection."""


class ClientStalled(Exception):
    """The client neither sends nor reads for longer than is allowed."""


class Deadline:
    """What one request in flight waits for, and how long it may.

    Within ``with deadline:`` the request waits for something and may be given up: `give_up` raises
    its error out of the block. Outside, nothing interrupts it.
    """

    __slots__ = (
        "_answered",
        "_armed",
        "_error",
        "_gone",
        "_listener",
        "_task",
        "limit",
        "on_limit",
        "owner",
        "receive",
        "request_id",
        "since",
        "started",
    )

    def __init__(self, request_id: str, now: float) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline belongs to a task")
        self.request_id = request_id
        self.owner: str | None = None
        """The key of the client that sent it, where there are keys."""
        self._task = task
        self._armed = self._answered = False
        self._error: Exception | None = None
        self._gone = False
        self._listener: asyncio.Task[None] | None = None
        self.started = self.since = now
        self.limit = float("inf")
        """Seconds that the present wait may last."""
        self.on_limit: Callable[[], Exception] = ClientStalled
        """Makes the error of a wait that lasted longer."""
        self.receive: Receive | None = None
        """The ASGI channel on which the client's leaving shows, once the body has been read."""

    def phase(self, now: float, limit: float, on_limit: Callable[[], Exception]) -> None:
        """From `now` on wait for something else, at most `limit` seconds."""
        self.since, self.limit, self.on_limit = now, limit, on_limit

    def __enter__(self) -> None:
        if self._gone:
            raise ClientGone
        self._armed = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._armed = False
        if self._error is not None:
            given, self._error = self._error, None
            # a cancellation from outside wins over ours
            if self._task.uncancel() == 0 and kind is asyncio.CancelledError:
                raise given from None

    def give_up(self, error: Exception) -> None:
        """Raise `error` in the request where it waits; without effect where it does not, or is answered."""
        if self._armed and self._error is None and not self._answered:
            self._error = error
            self._task.cancel()

    def answered(self) -> None:
        """The client has all of its answer: from now on neither its leaving nor anything else ends the
        request, which may only have to tidy up."""
        self._answered, self._gone, self.receive = True, False, None
        self.close()

    def is_of(self, request_id: str, owner: str | None) -> bool:
        """Whether it is that of a request with this id and key which has still to be answered."""
        return self.request_id == request_id and self.owner == owner and not self._answered

    def check(self, now: float) -> None:
        """End the request if it has waited too long; after a while, also watch for its client's leaving."""
        if now - self.since > self.limit:
            self.give_up(self.on_limit())
        if self._listener is None and self.receive is not None and now - self.started >= TICK:
            self._listener = asyncio.create_task(self._listen(self.receive))

    async def _listen(self, receive: Receive) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except Exception:  # a channel that fails takes no answer either
            logger.exception("the connection of request %s failed", self.request_id)
        self._gone = True
        self.give_up(ClientGone())

    def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()


class Deadlines:
    """Checks the deadlines of all requests in flight.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.in_flight: set[Deadline] = set()

    def open(self, request_id: str) -> Deadline:
        """A deadline for the running task, to be given back by `close`."""
        deadline = Deadline(request_id, self._clock())
        self.in_flight.add(deadline)
        return deadline

    def close(self, deadline: Deadline) -> None:
        self.in_flight.discard(deadline)
        deadline.close()

    def of(self, request_id: str, owner: str | None) -> list[Deadline]:
        """Those of all unanswered requests that were sent with this id and the key `owner`."""
        return [one for one in self.in_flight if one.is_of(request_id, owner)]

    async def look(self) -> None:
        """Check them all, once, after a while."""
        await asyncio.sleep(TICK)
        now = self._clock()
        for deadline in list(self.in_flight):
            try:
                deadline.check(now)
            except Exception as error:  # ends this request, which logs it, and keeps no other waiting
                deadline.give_up(error)
