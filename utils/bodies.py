"""The bodies of requests: how large each may be, how slowly it may come, and what all may hold."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Annotated, Any

from pydantic import Field

from protocol.errors import (
    ApiError,
    body_too_large,
    queue_timeout,
    too_many_values_in_body,
    unavailable,
    unsupported_coding,
)
from utils.begun import Begun
from utils.config import ConfigModel
from utils.json_values import most_values, too_many_values
from utils.threads import in_turn

SMALL_BODY = 2**16
"""Bodies up to this size are not counted, so that a few large ones cannot keep small ones out."""
COUNTED_AT_ONCE = 2**20
"""The values of bodies up to this size are counted without a thread."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class BodyLimits(ConfigModel):
    """Keys in the configuration of every service."""

    max_body_bytes: Annotated[int, Field(gt=0)] = 16 * 2**20
    max_buffered_body_bytes: Annotated[int, Field(gt=0)] = Field(
        256 * 2**20, description="bytes of all bodies above 64 KiB that are held at once; more get 503"
    )
    max_body_values: Annotated[int, Field(gt=0)] = Field(
        2**19,
        description="JSON values of one body, a key counting 4, an object or array 8; more get 413",
    )
    body_timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        20, description="how long a client may fall behind body_min_bytes_per_second"
    )
    body_min_bytes_per_second: Annotated[int, Field(gt=0)] = Field(
        4096, description="how fast a body must come"
    )


class ClientLeft(Exception):
    """The client left before its body was complete."""


class Bodies:
    """The bodies that a process holds.

    Args:
        limits: those of the moment; a reload may change them.
        clock: monotonic seconds.
        longest_pause: seconds between two pieces of a body, beside the limit on its pace.
    """

    def __init__(
        self,
        limits: Callable[[], BodyLimits],
        clock: Callable[[], float] = time.monotonic,
        longest_pause: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.limits = limits
        self.clock = clock
        self.longest_pause = longest_pause
        self.held = 0
        """Bytes of bodies above `SMALL_BODY`."""
        self._uploads: dict[Body, None] = {}  # bodies above `SMALL_BODY` still to be completed, oldest first

    def open(self, headers: Iterable[tuple[bytes, bytes]], limit: int | None = None) -> Body:
        """A body that is about to be read; it counts until its context is left.

        Args:
            headers: of the request.
            limit: bytes that it may have, where that is less than `max_body_bytes`.

        Raises:
            ApiError: 413, the client says that it is longer; 415, it is compressed.
        """
        most = self.limits().max_body_bytes
        limit = most if limit is None else min(limit, most)
        for name, value in headers:
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                raise unsupported_coding(value.decode("latin-1"))
            if name == b"content-length" and value.isdigit() and int(value) > limit:
                raise body_too_large(limit)
        return Body(self, limit)

    def take(self, body: Body, count: int) -> None:
        """Count `count` bytes more of `body`, a large one.

        Raises:
            ApiError: 503, there is no room.
        """
        limits = self.limits()
        if self.held + count > limits.max_buffered_body_bytes:
            # who uploads for long must not hold the room for long
            for upload in self._uploads:
                if self.clock() - upload.started > limits.body_timeout_seconds:
                    upload.give_way()
                    break
            raise bodies_full()
        self._uploads.setdefault(body)
        self.held += count

    def complete(self, body: Body) -> None:
        self._uploads.pop(body, None)

    def give_back(self, body: Body, count: int) -> None:
        self.complete(body)
        self.held -= count


class Body:
    """The body of one request."""

    __slots__ = (
        "_at",
        "_bodies",
        "_counted",
        "_gives_way",
        "_limit",
        "_size",
        "_slack",
        "_timeout",
        "started",
    )

    def __init__(self, bodies: Bodies, limit: int) -> None:
        self._bodies = bodies
        self._limit = limit
        self._size = self._counted = 0
        self._slack = bodies.limits().body_timeout_seconds
        self.started = self._at = bodies.clock()
        self._timeout: asyncio.Timeout | None = None
        self._gives_way = False

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._bodies.give_back(self, self._counted)

    async def read(self, receive: Receive) -> bytes:
        """All of it, from the ASGI channel `receive`.

        Raises:
            ApiError: 408, too slow; 413, too long, or too many values; 503, the process holds too much.
            ClientLeft: the client closed its connection.
        """
        whole: bytearray | None = None
        while True:
            message = await self._next(receive)
            part = message.get("body", b"")
            self._add(len(part))
            if whole is not None:
                whole += part
            if not message.get("more_body"):
                self._bodies.complete(self)
                complete = bytes(part if whole is None else whole)  # one piece is the common case
                if len(complete) > SMALL_BODY:
                    await self._count_values(complete)
                return complete
            if whole is None:
                whole = bytearray(part)

    async def _count_values(self, body: bytes) -> None:
        most = self._bodies.limits().max_body_values
        if len(body) <= COUNTED_AT_ONCE and most_values(body) <= most:
            return
        if await in_turn(too_many_values, body, most):
            raise too_many_values_in_body(most)

    async def _next(self, receive: Receive) -> MutableMapping[str, Any]:
        if self._gives_way:
            raise bodies_full()
        coming = Begun(receive())
        if coming.ended:  # as nearly always: it came with the head
            message = coming.result
        else:
            try:
                async with asyncio.timeout(min(self._slack, self._bodies.longest_pause())) as self._timeout:
                    message = await coming
            except TimeoutError:
                raise (bodies_full() if self._gives_way else body_late()) from None
            finally:
                self._timeout = None
        if message["type"] == "http.disconnect":
            raise ClientLeft
        return message

    def give_way(self) -> None:
        """Stop reading: there is no room for all."""
        self._gives_way = True
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0)

    def _add(self, count: int) -> None:
        limits, now = self._bodies.limits(), self._bodies.clock()
        self._size += count
        if self._size > self._limit:
            raise body_too_large(self._limit)
        # what came faster than it must buys no more than the first patience
        slack = self._slack - (now - self._at) + count / limits.body_min_bytes_per_second
        self._slack, self._at = min(slack, limits.body_timeout_seconds), now
        if self._size > SMALL_BODY:
            self._bodies.take(self, self._size - self._counted)
            self._counted = self._size


def body_late() -> ApiError:
    """408: the body comes too slowly."""
    return queue_timeout("the body did not arrive in time")


def bodies_full() -> ApiError:
    """503: the process holds as many bytes of bodies as it may."""
    return unavailable("the server holds as many bytes of request bodies as it may", code="bodies_full")
