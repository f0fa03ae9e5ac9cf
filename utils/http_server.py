"""The HTTP server of every service: uvicorn with limits for clients that send or read badly.

By itself uvicorn waits without end for a request to begin, takes heads of any size, adds trailers to
the headers, and keeps a connection open until its client has read everything.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]

from protocol.errors import ApiError, bad_request, head_too_large, target_too_long
from utils.access_log import Throttle, log_malformed
from utils.http_framing import frame_as_asked
from utils.http_head import check_head, take_host_from_target
from utils.http_limits import HEAD_BYTES, HttpLimits, allow_open_files, make_room
from utils.http_transport import JoiningTransport
from utils.parent import signal_at_parent_death

__all__ = ["HttpProtocol", "JoiningTransport", "Worker", "allow_open_files"]

PIPELINED = 16
"""Requests that may wait on a connection for the one before."""
MOST_PIPELINED = 128
"""A client that sends more at once is cut off."""
HEAD_SECONDS = 20.0
"""How long the head of a request may take, from its first byte or from the connection."""
LINGER_SECONDS = 2.0
"""How long a client that has its answer may go on sending, so that it gets to read it."""
PARSED_AT_ONCE = 2**14
CHUNK_OVERHEAD = 2**15
"""Bytes that sizes and extensions of chunks and trailers may have, and a quarter of the body's more."""


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    limits = HttpLimits()
    throttle = Throttle()
    """Of log lines about what is no request."""

    _head_timer: asyncio.TimerHandle | None = None
    _cycles: Sequence[RequestResponseCycle] = ()  # pipelined requests; uvicorn tells only the last of a loss
    _lingering: asyncio.TimerHandle | None = None
    _refusal: ApiError | None = None  # why a callback of the parser failed
    _in_head = True
    _heads = 0  # begun so far
    _head_bytes = 0  # of the present head, those that came in earlier pieces
    _message_bytes = 0  # since the present head ended, all there were ...
    _body_bytes = 0  # ... and those of the body
    _keep_alive = True
    _replaying = False
    waiting_since = 0.0

    # the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.limits.connections:
            make_room(self.connections, self.limits.connections)
        super().connection_made(JoiningTransport(transport, self.loop, self._closes))  # type: ignore[arg-type]
        self.waiting_since = self.loop.time()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        self._stop_waiting()
        self._joining.gone()
        if self._lingering is not None:
            self._lingering.cancel()

    @property
    def _joining(self) -> JoiningTransport:
        transport: Any = self.transport
        assert isinstance(transport, JoiningTransport)
        return transport

    def _closes(self) -> bool:
        """Close otherwise than by waiting until all is sent; whether that was done."""
        if any(cycle.response_started and not cycle.response_complete for cycle in self._cycles):
            self.transport.abort()  # the app has left a response without its end
            return True
        if self._in_head or self._lingering is not None:
            return False
        self._linger()  # the answer came before the end of the request
        return True

    @property
    def waits(self) -> bool:
        """Whether the client has asked for nothing yet, or not to the end."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started)

    def _await_head(self) -> None:
        # dripping bytes do not prolong it
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_response_complete(self) -> None:
        self.waiting_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._joining.watch_reader(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._joining.watch_reader(False)

    # what comes in

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        for start in range(0, len(data), PARSED_AT_ONCE):
            if self._lingering is not None or self.transport.is_closing():
                return
            whole = len(data) <= PARSED_AT_ONCE
            self._parse(data if whole else data[start : start + PARSED_AT_ONCE])
        if self._lingering is not None:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()  # a head has come; bodies are up to the app
        else:
            self._await_head()

    def _parse(self, data: bytes) -> None:
        heads, in_head = self._heads, self._in_head
        self._most = self._head_bytes + PARSED_AT_ONCE + len(data)  # the first piece is not in `_head_bytes`
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or bad_request(f"this is no valid HTTP request: {error}"))
            return
        if not self._in_head:
            if not in_head and self._heads == heads:  # what came with the head is not counted
                self._message_bytes += len(data)
            if self._message_bytes - self._body_bytes > CHUNK_OVERHEAD + self._body_bytes // 4:
                self._refuse(bad_request("the chunks of the body are too small, or their extensions long"))
        elif self._heads == heads:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(head_too_large(f"a head of more than {HEAD_BYTES} bytes"))
        else:
            self._head_bytes = 0

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on with HTTP/1.1 after a request that offers another protocol, as clients that would
        like HTTP/2 do. httptools has stopped before the body: another parser reads it."""
        framing = [f for f in self.scope["headers"] if f[0] in (b"content-length", b"transfer-encoding")]
        self.cycle.more_body, self.cycle.keep_alive = True, False
        self.parser = httptools.HttpRequestParser(self)
        self._in_head, self._replaying = False, True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(b"%s: %s\r\n" % f for f in framing) + b"\r\n")
        self._replaying = False
        if rest:
            self._parse(rest)

    def _refuse(self, error: ApiError) -> None:
        """Answer with `error` and close, if the client will take it for the answer to what it sent."""
        self._stop_waiting()
        pending = [cycle for cycle in self._cycles if not cycle.response_complete]
        answered = self.cycle is not None and self.cycle.response_complete
        if pending != ([] if self._in_head else [self.cycle]) or (answered and not self._in_head):
            self.transport.abort()
            return
        if any(cycle.response_started for cycle in pending):
            self.transport.abort()
            return
        for cycle in pending:
            cycle.disconnected = True
            cycle.message_event.set()
        client = self.client[0] if self.client else "-"
        log_malformed(client, error.status, error.body.code or error.body.message, self.throttle)
        body = error.json()
        head = [STATUS_LINE[error.status], b"content-type: application/json\r\n"]
        head += [b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body), body]
        self.transport.write(b"".join(head))
        self.transport.write_eof()
        self._linger()

    def _linger(self) -> None:
        """Discard further input, and close soon. At once, it would reset the connection before
        the client has read its answer."""
        self._stop_waiting()
        self._lingering = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    # callbacks of the parser

    def on_message_begin(self) -> None:
        if not self._replaying:
            self._in_head = True
            self._heads += 1
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._replaying:
            self.url += url
            if len(self.url) > self.limits.limit_request_line:
                self._refusal = target_too_long(self.limits.limit_request_line)
                raise self._refusal

    def on_headers_complete(self) -> None:
        if self._replaying:
            return
        try:
            check_head(self.parser.get_http_version(), self.url, self.headers, self.limits, self._most)
        except ApiError as error:
            self._refusal = error
            raise
        take_host_from_target(self.url, self.headers)
        super().on_headers_complete()
        self.headers = []  # of trailers, which are no headers (RFC 9110, 6.5.1)
        frame_as_asked(self.cycle)
        self._in_head = False
        # an answer that does not wait for the end of the request is the last one
        self._keep_alive, self.cycle.keep_alive = self.cycle.keep_alive, False
        self._message_bytes = self._body_bytes = 0
        before = [cycle for cycle in self._cycles if not cycle.response_complete]
        self._cycles = [*before, self.cycle]
        if 0 < len(before) < PIPELINED:
            self.flow.resume_reading()  # uvicorn reads no more, not even that the client has left
        elif len(before) > MOST_PIPELINED:
            self._in_head = True
            raise bad_request(f"more than {MOST_PIPELINED} requests at once")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive
        self._in_head = True
        self._head_bytes = 0


class Worker(UvicornWorker):  # type: ignore[misc]  # it has no types
    """Gunicorn's worker for all services."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        "loop": "uvloop",
        "http": HttpProtocol,
        "ws": "none",  # there are none
        "proxy_headers": False,  # what a client says of its own address is no proof
        "server_header": False,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config.http = type("HttpProtocol", (HttpProtocol,), {"limits": HttpLimits.of(self.cfg)})

    def init_signals(self) -> None:
        super().init_signals()
        # a closed terminal tells every process of the group: it is the master that replaces its workers
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def init_process(self) -> None:
        # gunicorn's own workers end with a master that was killed; uvicorn's would hold port and model
        signal_at_parent_death(self.ppid, signal.SIGTERM)
        super().init_process()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at once on SIGQUIT, with which gunicorn's master ends its workers on Ctrl-C."""
        super().handle_exit(sig, frame)
        for _ in range(2):  # uvicorn does nothing on SIGQUIT, and hurries on the second SIGINT
            signal.raise_signal(signal.SIGINT)
