"""How answers are framed: in chunks that the application may write itself, or, for clients of HTTP/1.0, which
know no chunks (RFC 9112, 6.1), by the end of the connection. uvicorn sends chunks to all.
"""

from __future__ import annotations

import weakref
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from utils.http_pieces import PIECES, BodyPieces


def frame_as_asked(cycle: RequestResponseCycle) -> None:
    """Offer `BodyPieces`; where the client is of HTTP/1.0, let an answer without a length end with the
    connection."""
    cycle.scope["extensions"] = {PIECES: BodyPieces(cycle)}  # type: ignore[dict-item]
    if cycle.scope["http_version"] == "1.0":
        cycle.send = _UnframedSend(cycle)  # type: ignore[method-assign]


class _UnframedSend:
    """Sends without chunks what has no length.

    Args:
        cycle: the request and its response, which holds this.
    """

    __slots__ = ("_cycle", "_unframed")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = weakref.ref(cycle)
        self._unframed = False

    async def __call__(self, message: Any) -> None:
        cycle = self._cycle()
        if cycle is None:
            return
        if message["type"] == "http.response.start":
            self._unframed = not any(
                name.lower() == b"content-length" for name, _ in message.get("headers", ())
            )
            if self._unframed:
                cycle.chunked_encoding, cycle.keep_alive = False, False
        elif self._unframed:
            cycle.expected_content_length = len(message.get("body", b""))
        await RequestResponseCycle.send(cycle, message)
