"""The transport of a connection: fewer packets, and an end for clients that do not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

STALL_SECONDS = 60.0
"""How often it is looked whether a client reads what waits for it."""
READ_BYTES_PER_SECOND = 1024
"""A client that reads less, while more waits for it, is cut off."""


def _never() -> bool:
    return False


class JoiningTransport:
    """A transport that sends the head of a response together with what is written right after it.

    An ASGI server writes the two one after the other, and each write is a system call and a packet.

    Args:
        closes: called to close in a way of its own; returns whether it did.
    """

    __slots__ = ("_call_soon", "_closes", "_head", "_stall", "_transport", "_write", "is_closing")

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        closes: Callable[[], bool] = _never,
    ) -> None:
        self._transport = transport
        self._closes = closes
        self._write = transport.write
        self.is_closing = transport.is_closing  # asked several times a request: `__getattr__` is slow
        self._call_soon = loop.call_soon
        self._stall = StallTimer(transport, loop)
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is not None:
            data, self._head = self._head + data, None
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._call_soon(self._flush)
            return
        self._write(data)

    def _flush(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._write(head)

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Close once all is sent, or as soon as the client does not read it."""
        self._flush()
        if self._closes():
            return
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._stall.start()

    def watch_reader(self, watch: bool) -> None:
        """Whether more bytes wait for the client than allowed."""
        if watch:
            self._stall.start()
        elif not self.is_closing():
            self._stall.stop()

    def gone(self) -> None:
        self._stall.stop()
        self._closes = _never  # the protocol's, which holds this: only the garbage collector frees a circle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class StallTimer:
    """Aborts a transport whose peer does not read what waits for it."""

    __slots__ = ("_loop", "_timer", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._timer is None:
            waiting = self._transport.get_write_buffer_size()
            self._timer = self._loop.call_later(STALL_SECONDS, self._look, waiting)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, before: int) -> None:
        self._timer = None
        waiting = self._transport.get_write_buffer_size()
        if waiting > before - STALL_SECONDS * READ_BYTES_PER_SECOND and waiting:
            self._transport.abort()  # closing would wait for the peer
        elif waiting:
            self.start()
