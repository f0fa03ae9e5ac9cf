"""The HTTP server of every service: uvicorn, which by itself waits for ever for a request to begin."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Sequence
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]

PIPELINED = 16
"""Requests that may wait on a connection for the one before."""
HEAD_SECONDS = 20.0
"""How long the head of a request may take, from its first byte or from the connection."""


class JoiningTransport:
    """A transport that sends the head of a response together with what is written right after it.

    An ASGI server writes the two one after the other, and each write is a system call and a packet.
    """

    __slots__ = ("_call_soon", "_head", "_transport", "_write")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._write = transport.write
        self._call_soon = loop.call_soon
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

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class HttpProtocol(HttpToolsProtocol):
    """Closes connections on which the head of a request is begun, or awaited, but does not come."""

    _head_timer: asyncio.TimerHandle | None = None
    _cycles: Sequence[RequestResponseCycle] = ()  # pipelined requests; uvicorn tells only the last of a loss

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(JoiningTransport(transport, self.loop))  # type: ignore[arg-type]
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()  # a head has come; bodies are up to the app
        else:
            self._await_head()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        before = [cycle for cycle in self._cycles if not cycle.response_complete]
        self._cycles = [*before, self.cycle]
        if 0 < len(before) < PIPELINED:
            self.flow.resume_reading()  # uvicorn reads no more, not even that the client has left

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        self._stop_waiting()

    def _await_head(self) -> None:
        # dripping bytes do not prolong it
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Worker(UvicornWorker):  # type: ignore[misc]  # it has no types
    """Gunicorn's worker for all services."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        "loop": "uvloop",
        "http": HttpProtocol,
        # no service looks at the client's address
        "proxy_headers": False,
        "server_header": False,
    }


def allow_open_files() -> None:
    """Raise this process's limit of open files as far as it may: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
